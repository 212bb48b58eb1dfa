package cli_test

// parityLines are the command lines that both programs run. A leading ~ lets
// the questions to the engine differ.
var parityLines = []string{
	// create: the request
	"create alpine", "create alpine sh -c 'echo hi'", "create -it --name x alpine", "create -i alpine", "create -t -a stdout alpine",
	"create -e A=1 -e FROM_ENV -e NOT_SET -e A=2 alpine", "create --env-file env -e B=3 alpine", "create --label a=b --label c --label-file labels alpine",
	"create -v /a:/b -v named:/c:ro -v /anon -v ./rel:/r alpine", "create --tmpfs /t:size=1m --tmpfs /u alpine",
	"create --mount type=bind,src=/x,dst=/y,readonly alpine", "create --mount src=v,target=/y,volume-nocopy,volume-label=a=b,volume-driver=d,volume-opt=k=v,volume-subpath=s alpine",
	"create --mount type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770 alpine", "create --mount type=bind,src=.,dst=/y,bind-propagation=rslave,bind-recursive=disabled,consistency=cached alpine",
	"create --mount type=image,src=x,dst=/y,image-subpath=z alpine", "create --mount type=bind,src=/,dst=/y,bind-recursive=writable alpine",
	"create --mount type=bind,src=/,dst=/y,volume-nocopy alpine", "create --mount type=bind,src=/,dst=/y,bogus=1 alpine", "create --mount type=bind,src=/,dst=/y,ro=maybe alpine",
	"create --mount type=tmpfs,dst=/t,bind-propagation=shared alpine", "create --mount dst=/t,tmpfs-mode=9 alpine",
	"create -p 80 -p 127.0.0.1:8000-8001:80-81/udp -p 8080:80 -p [::1]:90:90/sctp -p 9000-9010:99 alpine", "create -P --expose 80-82/udp --expose 99 alpine",
	"create -p target=80,published=8080,protocol=udp alpine", "create -p foo alpine", "create -p 1:2:3:4 alpine", "create -p 99999 alpine", "create -p 80-90:1-2 alpine", "create -p 80/foo alpine",
	"create --expose a:b alpine", "create --expose x alpine", "create --network foo --ip 1.2.3.4 --ip6 fe80::1 --network-alias q --link a:b --link-local-ip 169.254.1.1 --mac-address 92:d0:c6:0a:29:33 alpine",
	"create --network name=foo,alias=x,alias=y,driver-opt=k=v,gw-priority=5,mac-address=92:d0:c6:0a:29:34,ip=1.2.3.5 --network bar alpine",
	"create --network foo --network foo alpine", "create --network host --network foo alpine", "create --network-alias q alpine", "create --network host alpine", "create --network container:x alpine",
	"create --network name=foo,alias=a --network-alias b alpine", "create --network bogus=1 alpine", "create --network name=foo,gw-priority=x alpine", "create --link a:b alpine", "create --link a:b:c alpine",
	"create --mac-address z alpine", "create --mac-address 92:d0:c6:0a:29:33 alpine", "create --dns 1.1.1.1 --dns 127.0.0.1 --dns-search example.com --dns-search . --dns-option ndots:1 --dns-opt x alpine", "create --dns x alpine", "create --dns-search - alpine",
	"create --add-host a:1.2.3.4 --add-host b=::1 --add-host c:[::2] --add-host d:host-gateway alpine", "create --add-host foo alpine", "create --add-host x:y alpine",
	"create -m 64m --memory-reservation 32m --memory-swap -1 --memory-swappiness 10 --oom-kill-disable --oom-score-adj 5 --shm-size 1g alpine", "create -m foo alpine", "create --memory-swappiness 101 alpine",
	"create --cpus 1.5 -c 512 --cpu-period 1000 --cpu-quota 2000 --cpu-rt-period 1 --cpu-rt-runtime 2 --cpuset-cpus 0-1 --cpuset-mems 0 alpine", "create --cpus x alpine", "create --cpus 1.0000000001 alpine",
	"create --pids-limit 100 --blkio-weight 300 --blkio-weight-device /dev/sda:200 --device-read-bps /dev/sda:1mb --device-write-bps /dev/sda:2mb --device-read-iops /dev/sda:100 --device-write-iops /dev/sda:200 alpine",
	"create --blkio-weight-device /a alpine", "create --blkio-weight-device /dev/a:5 alpine", "create --device-read-bps /a:x alpine", "create --device-read-bps /dev/a:x alpine", "create --device-read-iops /dev/a:x alpine", "create --blkio-weight-device /a:1 alpine",
	"create --ulimit nofile=10:20 --ulimit core=0 alpine", "create --ulimit foo alpine", "create --ulimit nofile=20:10 alpine", "create --ulimit bogus=1 alpine",
	"create --device /dev/fuse --device /dev/a:/dev/b:r --device /dev/c:rw --device vendor.com/gpu=all --device-cgroup-rule 'c 1:3 mr' alpine", "create --device x:y alpine", "create --device /dev/a:b:c:d alpine", "create --device /dev/a:/dev/b:x alpine", "create --device-cgroup-rule x alpine",
	"create --gpus all alpine", "create --gpus 2 alpine", "create --gpus device=0 alpine", `create --gpus '"device=1,2","capabilities=compute,utility",driver=nvidia,"options=a=b,c=d"' alpine`, "create --gpus foo=bar alpine", "create --gpus foo alpine", "create --gpus count=1,count=2 alpine",
	"create --health-cmd 'curl x' --health-interval 5s --health-timeout 2s --health-retries 3 --health-start-period 1m --health-start-interval 1s alpine", "create --no-healthcheck alpine", "create --no-healthcheck --health-cmd x alpine", "create --health-interval -1s alpine", "create --health-retries -1 alpine",
	"create --restart always alpine", "create --restart on-failure:3 alpine", "create --restart :3 alpine", "create --restart on-failure:x alpine", "create --restart foo alpine", "create --rm alpine", "create --rm --restart always alpine", "create --rm --restart no alpine",
	"create --security-opt no-new-privileges --security-opt apparmor=unconfined --security-opt seccomp=seccomp.json --security-opt label:disable alpine", "create --security-opt systempaths=unconfined alpine", "create --security-opt foo alpine", "create --security-opt seccomp=/nope alpine", "create --security-opt no-new-privileges:true alpine", "create --security-opt writable-cgroups=true alpine",
	"create --cap-add NET_ADMIN --cap-drop ALL --privileged --read-only --init --user 1:2 -w /w --entrypoint sh --stop-signal INT --stop-timeout 5 alpine x", "create --init=false alpine", "create --entrypoint '' alpine",
	"create --pid host --ipc private --uts host --userns host --cgroupns private --cgroup-parent /p --isolation default --runtime crun --group-add 5 --volumes-from a:ro --volume-driver d -h host --domainname dom alpine",
	"create --pid z alpine", "create --pid container:x alpine", "create --uts z alpine", "create --userns z alpine", "create --cgroupns z alpine", "create --ipc container:x alpine",
	"create --log-driver json-file --log-opt max-size=1m --storage-opt size=1g --sysctl net.ipv4.ip_forward=1 --annotation a=b alpine", "create --log-driver none --log-opt a=b alpine", "create --storage-opt x alpine", "create --sysctl foo alpine",
	"create --platform linux/arm64 --name n alpine", "create --pull foo alpine", "create --cidfile /nonexistent/dir/f alpine", "create --label =x alpine", "create -e =x alpine", "create --env-file bad alpine", "create --env-file /nope alpine", "create -a foo alpine",
	"create --link-local-ip 169.254.1.1 --network foo alpine", "create UPPER", "create 'a b'", "create", "create --stop-timeout x alpine", "create --net host --net-alias x alpine", "create --io-maxiops 5 --io-maxbandwidth 1m --cpu-count 1 --cpu-percent 5 alpine", "create --use-api-socket=false alpine",
	// run: errors before anything starts
	"run", "run --foo", "run -d -a stdout alpine", "run --pull foo alpine", "run -it alpine",
	// lists
	"ps", "ps -a", "ps -q", "ps --no-trunc", "ps -s", "ps -l", "ps -n 3", "ps -f status=running -f label=a", "ps --format '{{.ID}} {{.Names}}'", "ps --format 'table {{.Names}}\\t{{.Ports}}\\t{{.Label \"com.example.x\"}}'",
	"ps --format json", "ps --format '{{json .Labels}}'", "ps --format '{{'", "ps --format '{{.Size}}'", "ps --format raw", "ps --format 'table {{upper .Names}} {{.Mounts}}'", "ps -f x", "ps extra", "container ls -q --no-trunc",
	"ps --format '{{.Mounts}} {{.LocalVolumes}} {{.Networks}} {{.CreatedAt}} {{.State}}'",
	"images", "images -q", "images --digests", "images --no-trunc", "images -a nginx", "images --format json", "images --format '{{.Repository}}:{{.Tag}} {{.Digest}}'", "images --format 'table {{.ID}}\\t{{.Size}}\\t{{.Containers}}'", "images -f dangling=true", "image ls --format raw",
	"history nginx", "history --no-trunc nginx", "history -q nginx", "history -H=false nginx", "history --format json nginx", "history nope",
	"network ls", "network ls -q", "network ls --no-trunc", "network ls --format json", "network ls --format '{{.Name}} {{.IPv6}} {{.Labels}} {{.CreatedAt}}'", "volume ls", "volume ls -q", "volume ls --format json", "volume ls --format 'table {{.Name}}\\t{{.Mountpoint}}\\t{{.Labels}}'", "volume ls -f dangling=true",
	// one object
	"inspect web", "~inspect nope", "~inspect web nope", "inspect -f '{{.Name}} {{.State.Pid}} {{json .Config.Labels}}' web", "inspect --type image nginx", "~inspect --type container nope", "inspect --type bogus x", "~inspect -s web", "container inspect web", "container inspect nope", "~inspect nginx",
	"image inspect nginx", "image inspect nope", "network inspect bridge", "network inspect nope", "volume inspect v1", "volume inspect nope", "inspect -f '{{.Big}}' web", "inspect -f '{{index .Config.Labels \"a\"}}' web", "inspect -f '{{' web", "inspect -f json web", "inspect -f '{{range $p, $c := .NetworkSettings.Ports}}{{$p}} {{end}}' web", "inspect -f '{{.Nope}}' web",
	// acting on containers
	"stop web", "stop -t 5 -s INT web", "stop web nope", "start web", "start nope web", "kill -s HUP web", "kill conflict", "restart -t 1 web", "pause web", "unpause web", "rename web new", "rename web ''", "rename nope new", "rm web", "rm -fv web nope", "rm nope", "rm ''", "wait web", "wait nope",
	"update -m 64m --cpus 2 --restart no --pids-limit 5 web", "update web", "top web", "top web -o pid", "port web", "port web 80", "port web 9000/udp", "port web 81", "port web x", "diff web", "commit web", "commit -a me -m msg -c 'CMD x' -p=false web repo:tag", "commit web UP", "logs web", "logs -t --details -n 5 --since 2024-01-02 --until 2024-01-03T04:05:06Z web", "logs nope",
	"~attach nope", "exec web", "~exec -it web sh", "export nope", "export -o /nodir/x web", "start -a a b",
	// images
	"tag nginx x:1", "tag nginx UP", "tag nope x", "rmi nginx", "rmi nope", "rmi -f nope", "save -o /nodir/x y", "save -o /tmp y", "load -i /nope", "pull -a x:1", "pull UP", "pull nginx", "pull -q nginx", "push UP", "import /nope", "search nope",
	// system
	"events --since 1600000000 --until 1600000002", "events --until 1600000002 --format json", "events --until 1600000002 --format '{{.ID}} {{.Type}} {{.Action}}'", "events --format '{{'", "events -f type=container --until 5",
	"system df", "system df -v", "system df --format json", "system df --format '{{.Type}} {{.Size}}'", "container prune -f", "container prune", "image prune -af", "image prune --filter until=5h -f", "network prune -f", "volume prune -af", "volume prune", "system prune -f", "system prune -af --volumes", "system prune --volumes --filter until=1h", "system prune --filter label=a",
	"stats --no-stream web", "stats --no-stream --format json web", "stats --no-stream nope", "stats --no-stream --no-trunc --format '{{.Container}} {{.ID}} {{.PIDs}}' web",
	"version --format '{{.Server.Version}}'", "info --format '{{.Driver}} {{.NCPU}}'",
	// networks and volumes
	"network create n1", "network create --subnet 10.0.0.0/16 --gateway 10.0.0.1 --ip-range 10.0.1.0/24 --aux-address a=10.0.0.5 --internal --ipv6 --attachable --label a=b -o k=v --ipam-opt x=y n1", "network create --gateway 10.0.0.1 n1", "network create --subnet 10.0.0.0/16 --subnet 10.0.1.0/24 n1", "network create --subnet 10.0.0.0/16 --gateway 11.0.0.1 n1",
	"network connect --alias a --ip 1.2.3.4 --link x:y bridge web", "network disconnect -f bridge web", "~network rm -f nope", "volume create", "volume create -d local -o type=tmpfs --label a=b v", "volume rm v1 nope", "volume rm -f nope", "volume update v1",
	// contexts
	"context ls", "context ls -q", "context ls --format json", "context show", "context inspect", "context inspect nope", "context use nope", "context create default", "context create c1 --docker host=tcp://h:1", "context rm default", "context rm nope", "context export nope", "context import", "context create 'a b'", "context create x --docker bogus=1",
	// usage errors
	"foo", "container foo", "container", "--nope", "-z", "rename a", "inspect", "stop", "ps --format", "cp a b", "cp a:b c:d", "cp '' b", "tag a", "--log-level bogus ps", "logs", "exec", "port",
}
