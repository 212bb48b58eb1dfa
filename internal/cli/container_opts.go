package cli

import (
	"time"

	"github.com/spf13/pflag"
)

// containerOptions are the flags that create and run share.
type containerOptions struct {
	attach                                                   *listValue
	env, envFile, labels, labelFile                          *listValue
	volumes, tmpfs, expose, publish, devices, deviceRules    *listValue
	dns, dnsOptions, dnsSearch, extraHosts, links, aliases   *listValue
	linkLocalIPs, volumesFrom, capAdd, capDrop, groupAdd     *listValue
	securityOpt, storageOpt, logOpts                         *listValue
	annotationMap, sysctls                                   *mapValue
	weightDevice                                             weightValue
	readBps, writeBps, readIOps, writeIOps                   throttleValue
	ulimits                                                  ulimitValue
	mounts                                                   mountValue
	networks                                                 networkValue
	gpus                                                     gpuValue
	memory, reservation, swap, kernelMemory, shm, ioBandwdth bytesValue
	cpus                                                     cpusValue

	interactive, tty, publishAll, privileged, readOnly, oomKillDisable   bool
	init, autoRemove, noHealthcheck, useAPISocket                        bool
	hostname, domainname, user, workdir, entrypoint, pid, uts, userns    string
	cgroupns, ipc, restart, ipv4, ipv6, mac, volumeDriver, runtime       string
	stopSignal, isolation, logDriver, cgroupParent, cpusetCpus, cpusetMm string
	cidfile, healthCmd                                                   string
	oomScoreAdj, healthRetries, stopTimeout                              int
	swappiness, pidsLimit                                                int64
	cpuShares, cpuPeriod, cpuQuota, cpuRTPeriod, cpuRTRuntime            int64
	cpuCount, cpuPercent                                                 int64
	ioMaxIOps                                                            uint64
	blkioWeight                                                          uint16
	healthInterval, healthTimeout, healthStart, healthStartInterval      time.Duration

	image string
	args  []string
	set   *pflag.FlagSet
}

// addFlags adds every flag of create and run.
func (o *containerOptions) addFlags(cli *CLI, f *pflag.FlagSet) {
	o.set = f
	lists := []struct {
		p           **listValue
		name, short string
		check       func(string) (string, error)
		help        string
	}{
		{&o.attach, "attach", "a", checkAttach, "Attach to STDIN, STDOUT or STDERR"},
		{&o.deviceRules, "device-cgroup-rule", "", checkDeviceRule, "Add a rule to the cgroup allowed devices list"},
		{&o.devices, "device", "", nil, "Add a host device to the container"},
		{&o.env, "env", "e", cli.checkEnv, "Set environment variables"},
		{&o.envFile, "env-file", "", nil, "Read in a file of environment variables"},
		{&o.groupAdd, "group-add", "", nil, "Add additional groups to join"},
		{&o.labels, "label", "l", checkLabel, "Set meta data on a container"},
		{&o.labelFile, "label-file", "", nil, "Read in a line delimited file of labels"},
		{&o.capAdd, "cap-add", "", nil, "Add Linux capabilities"},
		{&o.capDrop, "cap-drop", "", nil, "Drop Linux capabilities"},
		{&o.securityOpt, "security-opt", "", nil, "Security Options"},
		{&o.extraHosts, "add-host", "", checkExtraHost, "Add a custom host-to-IP mapping (host:ip)"},
		{&o.dns, "dns", "", checkIP, "Set custom DNS servers"},
		{&o.dnsOptions, "dns-option", "", nil, "Set DNS options"},
		{&o.dnsSearch, "dns-search", "", checkDNSSearch, "Set custom DNS search domains"},
		{&o.expose, "expose", "", nil, "Expose a port or a range of ports"},
		{&o.links, "link", "", checkLink, "Add link to another container"},
		{&o.linkLocalIPs, "link-local-ip", "", nil, "Container IPv4/IPv6 link-local addresses"},
		{&o.aliases, "network-alias", "", nil, "Add network-scoped alias for the container"},
		{&o.publish, "publish", "p", nil, "Publish a container's port(s) to the host"},
		{&o.logOpts, "log-opt", "", nil, "Log driver options"},
		{&o.storageOpt, "storage-opt", "", nil, "Storage driver options for the container"},
		{&o.tmpfs, "tmpfs", "", nil, "Mount a tmpfs directory"},
		{&o.volumesFrom, "volumes-from", "", nil, "Mount volumes from the specified container(s)"},
		{&o.volumes, "volume", "v", nil, "Bind mount a volume"},
	}
	for _, l := range lists {
		*l.p = list(l.check)
		f.VarP(*l.p, l.name, l.short, l.help)
	}
	f.Var(alias{o.dnsOptions}, "dns-opt", "Set DNS options")
	f.Var(alias{o.aliases}, "net-alias", "Add network-scoped alias for the container")
	f.Var(&o.networks, "network", "Connect a container to a network")
	f.Var(&o.networks, "net", "Connect a container to a network")
	for _, name := range []string{"dns-opt", "net-alias", "net"} {
		f.Lookup(name).Hidden = true
	}
	o.annotationMap, o.sysctls = kvMap(nil), kvMap(checkSysctl)
	f.Var(o.annotationMap, "annotation", "Add an annotation to the container (passed through to the OCI runtime)")
	f.Var(o.sysctls, "sysctl", "Sysctl options")
	o.readIOps.iops, o.writeIOps.iops, o.swap.swap = true, true, true
	f.Var(&o.gpus, "gpus", "GPU devices to add to the container ('all' to pass all GPUs)")
	f.Lookup("gpus").NoOptDefVal = ""
	f.Var(&o.ulimits, "ulimit", "Ulimit options")
	f.Var(&o.mounts, "mount", "Attach a filesystem mount to the container")
	f.Var(&o.weightDevice, "blkio-weight-device", "Block IO weight (relative device weight)")
	f.Var(&o.readBps, "device-read-bps", "Limit read rate (bytes per second) from a device")
	f.Var(&o.readIOps, "device-read-iops", "Limit read rate (IO per second) from a device")
	f.Var(&o.writeBps, "device-write-bps", "Limit write rate (bytes per second) to a device")
	f.Var(&o.writeIOps, "device-write-iops", "Limit write rate (IO per second) to a device")
	f.VarP(&o.memory, "memory", "m", "Memory limit")
	f.Var(&o.reservation, "memory-reservation", "Memory soft limit")
	f.Var(&o.swap, "memory-swap", "Swap limit equal to memory plus swap: '-1' to enable unlimited swap")
	f.Var(&o.kernelMemory, "kernel-memory", "Kernel memory limit")
	f.Var(&o.shm, "shm-size", "Size of /dev/shm")
	f.Var(&o.ioBandwdth, "io-maxbandwidth", "Maximum IO bandwidth limit for the system drive (Windows only)")
	f.Var(&o.cpus, "cpus", "Number of CPUs")
	o.addScalars(f)
}

func (o *containerOptions) addScalars(f *pflag.FlagSet) {
	f.BoolVarP(&o.interactive, "interactive", "i", false, "Keep STDIN open even if not attached")
	f.BoolVarP(&o.tty, "tty", "t", false, "Allocate a pseudo-TTY")
	f.BoolVarP(&o.publishAll, "publish-all", "P", false, "Publish all exposed ports to random ports")
	f.BoolVar(&o.privileged, "privileged", false, "Give extended privileges to this container")
	f.BoolVar(&o.readOnly, "read-only", false, "Mount the container's root filesystem as read only")
	f.BoolVar(&o.oomKillDisable, "oom-kill-disable", false, "Disable OOM Killer")
	f.BoolVar(&o.init, "init", false, "Run an init inside the container that forwards signals and reaps processes")
	f.BoolVar(&o.autoRemove, "rm", false, "Automatically remove the container and its associated anonymous volumes when it exits")
	f.BoolVar(&o.noHealthcheck, "no-healthcheck", false, "Disable any container-specified HEALTHCHECK")
	f.BoolVar(&o.useAPISocket, "use-api-socket", false, "Bind mount Docker API socket and required auth")
	f.StringVarP(&o.hostname, "hostname", "h", "", "Container host name")
	f.StringVar(&o.domainname, "domainname", "", "Container NIS domain name")
	f.StringVarP(&o.user, "user", "u", "", "Username or UID (format: <name|uid>[:<group|gid>])")
	f.StringVarP(&o.workdir, "workdir", "w", "", "Working directory inside the container")
	f.StringVar(&o.entrypoint, "entrypoint", "", "Overwrite the default ENTRYPOINT of the image")
	f.StringVar(&o.pid, "pid", "", "PID namespace to use")
	f.StringVar(&o.uts, "uts", "", "UTS namespace to use")
	f.StringVar(&o.userns, "userns", "", "User namespace to use")
	f.StringVar(&o.cgroupns, "cgroupns", "", `Cgroup namespace to use (host|private)
'host':    Run the container in the Docker host's cgroup namespace
'private': Run the container in its own private cgroup namespace
'':        Use the cgroup namespace as configured by the
           default-cgroupns-mode option on the daemon (default)`)
	f.StringVar(&o.ipc, "ipc", "", "IPC mode to use")
	f.StringVar(&o.restart, "restart", "no", "Restart policy to apply when a container exits")
	f.StringVar(&o.ipv4, "ip", "", "IPv4 address (e.g., 172.30.100.104)")
	f.StringVar(&o.ipv6, "ip6", "", "IPv6 address (e.g., 2001:db8::33)")
	f.StringVar(&o.mac, "mac-address", "", "Container MAC address (e.g., 92:d0:c6:0a:29:33)")
	f.StringVar(&o.volumeDriver, "volume-driver", "", "Optional volume driver for the container")
	f.StringVar(&o.runtime, "runtime", "", "Runtime to use for this container")
	f.StringVar(&o.stopSignal, "stop-signal", "", "Signal to stop the container")
	f.StringVar(&o.isolation, "isolation", "", "Container isolation technology")
	f.StringVar(&o.logDriver, "log-driver", "", "Logging driver for the container")
	f.StringVar(&o.cgroupParent, "cgroup-parent", "", "Optional parent cgroup for the container")
	f.StringVar(&o.cpusetCpus, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	f.StringVar(&o.cpusetMm, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	f.StringVar(&o.cidfile, "cidfile", "", "Write the container ID to the file")
	f.StringVar(&o.healthCmd, "health-cmd", "", "Command to run to check health")
	f.IntVar(&o.oomScoreAdj, "oom-score-adj", 0, "Tune host's OOM preferences (-1000 to 1000)")
	f.IntVar(&o.healthRetries, "health-retries", 0, "Consecutive failures needed to report unhealthy")
	f.IntVar(&o.stopTimeout, "stop-timeout", 0, "Timeout (in seconds) to stop a container")
	f.Int64Var(&o.swappiness, "memory-swappiness", -1, "Tune container memory swappiness (0 to 100)")
	f.Int64Var(&o.pidsLimit, "pids-limit", 0, "Tune container pids limit (set -1 for unlimited)")
	f.Int64VarP(&o.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	f.Int64Var(&o.cpuPeriod, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	f.Int64Var(&o.cpuQuota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	f.Int64Var(&o.cpuRTPeriod, "cpu-rt-period", 0, "Limit CPU real-time period in microseconds")
	f.Int64Var(&o.cpuRTRuntime, "cpu-rt-runtime", 0, "Limit CPU real-time runtime in microseconds")
	f.Int64Var(&o.cpuCount, "cpu-count", 0, "CPU count (Windows only)")
	f.Int64Var(&o.cpuPercent, "cpu-percent", 0, "CPU percent (Windows only)")
	f.Uint64Var(&o.ioMaxIOps, "io-maxiops", 0, "Maximum IOps limit for the system drive (Windows only)")
	f.Uint16Var(&o.blkioWeight, "blkio-weight", 0, "Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)")
	f.DurationVar(&o.healthInterval, "health-interval", 0, "Time between running the check (ms|s|m|h) (default 0s)")
	f.DurationVar(&o.healthTimeout, "health-timeout", 0, "Maximum time to allow one check to run (ms|s|m|h) (default 0s)")
	f.DurationVar(&o.healthStart, "health-start-period", 0, "Start period for the container to initialize before starting health-retries countdown (ms|s|m|h) (default 0s)")
	f.DurationVar(&o.healthStartInterval, "health-start-interval", 0, "Time between running the check during the start period (ms|s|m|h) (default 0s)")
}

// alias is a second, hidden name of a list flag.
type alias struct{ *listValue }
