package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// parse turns the flags into the create request.
func (o *containerOptions) parse(cli *CLI) (*container.CreateRequest, error) {
	attachIn, attachOut, attachErr := o.attach.has("stdin"), o.attach.has("stdout"), o.attach.has("stderr")
	if o.mac != "" {
		if _, err := net.ParseMAC(strings.TrimSpace(o.mac)); err != nil {
			return nil, fmt.Errorf("%s is not a valid mac address", o.mac)
		}
	}
	if o.interactive {
		attachIn = true
	}
	if len(o.attach.values) == 0 {
		attachOut, attachErr = true, true
	}
	if o.swappiness != -1 && (o.swappiness < 0 || o.swappiness > 100) {
		return nil, fmt.Errorf("invalid value: %d. Valid memory swappiness range is 0-100", o.swappiness)
	}
	binds, volumes, err := o.splitVolumes()
	if err != nil {
		return nil, err
	}
	tmpfs := map[string]string{}
	for _, t := range o.tmpfs.values {
		k, v, _ := strings.Cut(t, ":")
		tmpfs[k] = v
	}
	var cmd, entrypoint []string
	if len(o.args) > 0 {
		cmd = o.args
	}
	switch {
	case o.entrypoint != "":
		entrypoint = []string{o.entrypoint}
	case o.set.Changed("entrypoint"): // --entrypoint="" resets it
		entrypoint = []string{""}
	}
	ports, bindings, err := parsePublish(o.publish.values)
	if err != nil {
		return nil, err
	}
	if err := o.addExposed(ports); err != nil {
		return nil, err
	}
	devices, cdi, err := o.parseDevices()
	if err != nil {
		return nil, err
	}
	env, err := o.environment(cli)
	if err != nil {
		return nil, err
	}
	labels, err := o.allLabels()
	if err != nil {
		return nil, err
	}
	pid, uts, userns, cgroupns := container.PidMode(o.pid), container.UTSMode(o.uts), container.UsernsMode(o.userns), container.CgroupnsMode(o.cgroupns)
	switch {
	case !pid.Valid():
		return nil, errors.New("--pid: invalid PID mode")
	case !uts.Valid():
		return nil, errors.New("--uts: invalid UTS mode")
	case !userns.Valid():
		return nil, errors.New("--userns: invalid USER mode")
	case !cgroupns.Valid():
		return nil, errors.New("--cgroupns: invalid CGROUP mode")
	}
	policy, err := parseRestart(o.restart)
	if err != nil {
		return nil, err
	}
	if o.logDriver == "none" && len(o.logOpts.values) > 0 {
		return nil, fmt.Errorf("invalid logging opts for driver %s", o.logDriver)
	}
	security, err := parseSecurity(o.securityOpt.values)
	if err != nil {
		return nil, err
	}
	security, masked, readonly := systemPaths(security)
	var storage map[string]string
	for _, s := range o.storageOpt.values {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return nil, errors.New("invalid storage option")
		}
		if storage == nil {
			storage = map[string]string{}
		}
		storage[k] = v
	}
	health, err := o.health()
	if err != nil {
		return nil, err
	}
	if o.autoRemove && !policy.IsNone() {
		return nil, errors.New("conflicting options: cannot specify both --restart and --rm")
	}
	mode, endpoints, err := o.networking()
	if err != nil {
		return nil, err
	}
	capAdd, capDrop := capabilities(o.capAdd.values, o.capDrop.values)
	hc := &container.HostConfig{
		Binds: binds, ContainerIDFile: o.cidfile, OomScoreAdj: o.oomScoreAdj, AutoRemove: o.autoRemove, Privileged: o.privileged,
		PortBindings: bindings, Links: o.links.values, PublishAllPorts: o.publishAll, DNS: addrs(o.dns.values),
		DNSSearch: orEmpty(o.dnsSearch.values), DNSOptions: orEmpty(o.dnsOptions.values), ExtraHosts: o.extraHosts.values,
		VolumesFrom: o.volumesFrom.values, IpcMode: container.IpcMode(o.ipc), NetworkMode: mode, PidMode: pid, UTSMode: uts,
		UsernsMode: userns, CgroupnsMode: cgroupns, CapAdd: capAdd, CapDrop: capDrop, GroupAdd: o.groupAdd.values,
		RestartPolicy: policy, SecurityOpt: security, StorageOpt: storage, ReadonlyRootfs: o.readOnly,
		LogConfig:    container.LogConfig{Type: o.logDriver, Config: pairs(o.logOpts.values)},
		VolumeDriver: o.volumeDriver, Isolation: container.Isolation(o.isolation), ShmSize: o.shm.n,
		Resources: o.resources(append(o.gpus.list, cdi...)), Tmpfs: tmpfs, Sysctls: o.sysctls.values, Runtime: o.runtime,
		Mounts: o.mounts.list, MaskedPaths: masked, ReadonlyPaths: readonly, Annotations: o.annotationMap.values,
	}
	hc.Devices = devices
	if o.set.Changed("init") {
		hc.Init = &o.init
	}
	cfg := &container.Config{
		Hostname: o.hostname, Domainname: o.domainname, ExposedPorts: ports, User: o.user, Tty: o.tty, OpenStdin: o.interactive,
		AttachStdin: attachIn, AttachStdout: attachOut, AttachStderr: attachErr, Env: env, Cmd: cmd, Image: o.image, Volumes: volumes,
		Entrypoint: entrypoint, WorkingDir: o.workdir, Labels: labels, StopSignal: o.stopSignal, Healthcheck: health,
	}
	if o.set.Changed("stop-timeout") {
		cfg.StopTimeout = &o.stopTimeout
	}
	cfg.StdinOnce = cfg.OpenStdin && cfg.AttachStdin
	return &container.CreateRequest{
		Config: cfg, HostConfig: hc, NetworkingConfig: &network.NetworkingConfig{EndpointsConfig: endpoints},
	}, nil
}

func (o *containerOptions) resources(requests []container.DeviceRequest) container.Resources {
	r := container.Resources{
		CgroupParent: o.cgroupParent, Memory: o.memory.n, MemoryReservation: o.reservation.n, MemorySwap: o.swap.n,
		MemorySwappiness: &o.swappiness, OomKillDisable: &o.oomKillDisable, NanoCPUs: int64(o.cpus), CPUCount: o.cpuCount,
		CPUPercent: o.cpuPercent, CPUShares: o.cpuShares, CPUPeriod: o.cpuPeriod, CpusetCpus: o.cpusetCpus, CpusetMems: o.cpusetMm,
		CPUQuota: o.cpuQuota, CPURealtimePeriod: o.cpuRTPeriod, CPURealtimeRuntime: o.cpuRTRuntime, PidsLimit: &o.pidsLimit,
		BlkioWeight: o.blkioWeight, BlkioWeightDevice: o.weightDevice.list, BlkioDeviceReadBps: o.readBps.list,
		BlkioDeviceWriteBps: o.writeBps.list, BlkioDeviceReadIOps: o.readIOps.list, BlkioDeviceWriteIOps: o.writeIOps.list,
		IOMaximumIOps: o.ioMaxIOps, IOMaximumBandwidth: uint64(max(o.ioBandwdth.n, 0)), Ulimits: o.ulimits.list(),
		DeviceCgroupRules: o.deviceRules.values, DeviceRequests: requests,
	}
	return r
}

// capabilities gives capabilities their full names. ALL makes others of its
// list needless, and what is added is not dropped.
func capabilities(add, drop []string) (outAdd, outDrop []string) {
	set := func(l []string) map[string]bool {
		m := map[string]bool{}
		for _, c := range l {
			c = strings.ToUpper(strings.TrimSpace(c))
			if c != "ALL" && c != "RESET" && !strings.HasPrefix(c, "CAP_") {
				c = "CAP_" + c
			}
			m[c] = true
		}
		if m["ALL"] {
			return map[string]bool{"ALL": true}
		}
		return m
	}
	a, d := set(add), set(drop)
	for _, c := range sortedKeys(d) {
		if !a[c] {
			outDrop = append(outDrop, c)
		}
	}
	if len(a) > 0 {
		outAdd = sortedKeys(a)
	}
	return outAdd, outDrop
}

func addrs(l []string) []netip.Addr {
	out := []netip.Addr{}
	for _, s := range l {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// splitVolumes tells binds and named volumes from anonymous volumes.
func (o *containerOptions) splitVolumes() (binds []string, anonymous map[string]struct{}, err error) {
	anonymous = map[string]struct{}{}
	seen := map[string]bool{}
	for _, v := range o.volumes.values {
		if seen[v] {
			continue
		}
		seen[v] = true
		parts := strings.Split(v, ":")
		for i, p := range parts {
			switch {
			case i == 3:
				return nil, nil, fmt.Errorf("invalid spec: %s: too many colons", v)
			case p == "" && v != "":
				return nil, nil, fmt.Errorf("invalid spec: %s: empty section between colons", v)
			}
		}
		host, target, ok := strings.Cut(v, ":")
		if !ok {
			anonymous[v] = struct{}{}
			continue
		}
		if strings.HasPrefix(host, ".") {
			if abs, err := filepath.Abs(host); err == nil {
				v = abs + ":" + target
			}
		}
		binds = append(binds, v)
	}
	return binds, anonymous, nil
}

func (o *containerOptions) addExposed(ports network.PortSet) error {
	for _, e := range o.expose.values {
		if strings.Contains(e, ":") {
			return fmt.Errorf("invalid port format for --expose: %s", e)
		}
		r, proto, _ := strings.Cut(e, "/")
		if proto == "" {
			proto = "tcp"
		}
		lo, hi, err := portRange(r)
		if err != nil {
			return fmt.Errorf("invalid range format for --expose: %s, error: %w", e, err)
		}
		for i := uint32(lo); i <= uint32(hi); i++ {
			p, ok := network.PortFrom(uint16(i), network.IPProtocol(strings.ToLower(proto)))
			if !ok {
				return errors.New("invalid proto: " + proto)
			}
			ports[p] = struct{}{}
		}
	}
	return nil
}

// parseDevices tells device paths from CDI names (vendor.com/class=name).
func (o *containerOptions) parseDevices() ([]container.DeviceMapping, []container.DeviceRequest, error) {
	devices := []container.DeviceMapping{}
	var cdi []string
	for _, d := range o.devices.values {
		if isCDI(d) {
			cdi = append(cdi, d)
			continue
		}
		m, err := parseDevice(d)
		if err != nil {
			return nil, nil, err
		}
		devices = append(devices, m)
	}
	if cdi == nil {
		return devices, nil, nil
	}
	return devices, []container.DeviceRequest{{Driver: "cdi", DeviceIDs: cdi}}, nil
}

func isCDI(s string) bool {
	kind, name, ok := strings.Cut(s, "=")
	vendor, class, ok2 := strings.Cut(kind, "/")
	return ok && ok2 && vendor != "" && class != "" && name != "" && !strings.ContainsAny(s, ": ")
}

func deviceMode(s string) bool {
	if s == "" {
		return false
	}
	seen := map[rune]bool{}
	for _, c := range s {
		if !strings.ContainsRune("rwm", c) || seen[c] {
			return false
		}
		seen[c] = true
	}
	return true
}

func parseDevice(s string) (container.DeviceMapping, error) {
	m := container.DeviceMapping{CgroupPermissions: "rwm"}
	arr := strings.Split(s, ":")
	if strings.Count(s, ":") > 2 {
		return m, fmt.Errorf("bad format for path: %s", s)
	}
	switch len(arr) {
	case 3:
		if !deviceMode(arr[2]) {
			return m, fmt.Errorf("bad mode specified: %s", arr[2])
		}
		m.PathOnHost, m.PathInContainer, m.CgroupPermissions = arr[0], arr[1], arr[2]
	case 2:
		m.PathOnHost = arr[0]
		if deviceMode(arr[1]) {
			m.CgroupPermissions = arr[1]
		} else {
			m.PathInContainer = arr[1]
		}
	default:
		m.PathOnHost = arr[0]
	}
	if m.PathInContainer == "" {
		m.PathInContainer = m.PathOnHost
	}
	if !filepath.IsAbs(m.PathInContainer) {
		return m, fmt.Errorf("%s is not an absolute path", m.PathInContainer)
	}
	return m, nil
}

// environment joins --env-file, --env and proxies. Of --env a later value of a name wins.
func (o *containerOptions) environment(cli *CLI) ([]string, error) {
	var all []string
	for _, f := range o.envFile.values {
		kv, err := readKVFile(f, cli.environ)
		if err != nil {
			return nil, err
		}
		all = append(all, kv...)
	}
	fromFiles := len(all)
	all = append(all, o.env.values...)
	host := cli.envHost()
	if ep, err := cli.endpoint(); err == nil {
		host = ep.host
	}
	given := map[string]bool{}
	for _, e := range o.env.values {
		k, _, _ := strings.Cut(e, "=")
		given[k] = true
	}
	for _, p := range cli.Config().proxyEnv(host) {
		if k, _, _ := strings.Cut(p, "="); !given[k] {
			all = append(all, p)
		}
	}
	at := map[string]int{}
	out := append([]string{}, all[:fromFiles]...)
	for _, e := range all[fromFiles:] {
		k, _, _ := strings.Cut(e, "=")
		if i, ok := at[k]; ok {
			out[i] = e
			continue
		}
		at[k] = len(out)
		out = append(out, e)
	}
	return out, nil
}

func (o *containerOptions) allLabels() (map[string]string, error) {
	var all []string
	for _, f := range o.labelFile.values {
		kv, err := readKVFile(f, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, kv...)
	}
	return pairs(append(all, o.labels.values...)), nil
}

func parseRestart(s string) (container.RestartPolicy, error) {
	name, count, has := strings.Cut(s, ":")
	p := container.RestartPolicy{}
	if s == "" {
		return p, nil
	}
	if has && name == "" {
		return p, errors.New("invalid restart policy format: no policy provided before colon")
	}
	if count != "" {
		n, err := strconv.Atoi(count)
		if err != nil {
			return p, errors.New("invalid restart policy format: maximum retry count must be an integer")
		}
		p.MaximumRetryCount = n
	}
	p.Name = container.RestartPolicyMode(name)
	return p, nil
}

// parseSecurity checks the options and reads seccomp profiles.
func parseSecurity(opts []string) ([]string, error) {
	out := append([]string(nil), opts...)
	for i, opt := range out {
		k, v, ok := strings.Cut(opt, "=")
		if !ok && k != "no-new-privileges" {
			if k, v, ok = strings.Cut(opt, ":"); !ok { // the old separator
				return nil, fmt.Errorf("Invalid --security-opt: %q", opt) //nolint:staticcheck // Docker's words
			}
		}
		if k != "seccomp" || v == "unconfined" || v == "builtin" {
			continue
		}
		b, err := os.ReadFile(v)
		if err != nil {
			return nil, fmt.Errorf("opening seccomp profile (%s) failed: %w", v, err)
		}
		var c bytes.Buffer
		if err := json.Compact(&c, b); err != nil {
			return nil, fmt.Errorf("compacting json for seccomp profile (%s) failed: %w", v, err)
		}
		out[i] = "seccomp=" + c.String()
	}
	return out, nil
}

// systemPaths takes systempaths=unconfined out: it is an empty list of masked and read-only paths.
func systemPaths(opts []string) (rest, masked, readonly []string) {
	for _, o := range opts {
		if o == "systempaths=unconfined" {
			masked, readonly = []string{}, []string{}
			continue
		}
		rest = append(rest, o)
	}
	return rest, masked, readonly
}

func (o *containerOptions) health() (*container.HealthConfig, error) {
	have := o.healthCmd != "" || o.healthInterval != 0 || o.healthTimeout != 0 || o.healthStart != 0 || o.healthRetries != 0 || o.healthStartInterval != 0
	if o.noHealthcheck {
		if have {
			return nil, errors.New("--no-healthcheck conflicts with --health-* options")
		}
		return &container.HealthConfig{Test: []string{"NONE"}}, nil
	}
	if !have {
		return nil, nil
	}
	for _, d := range []struct {
		name string
		v    time.Duration
	}{
		{"interval", o.healthInterval},
		{"timeout", o.healthTimeout},
		{"retries", time.Duration(o.healthRetries)},
		{"start-period", o.healthStart},
		{"start-interval", o.healthStartInterval},
	} {
		if d.v < 0 {
			return nil, fmt.Errorf("--health-%s cannot be negative", d.name)
		}
	}
	h := &container.HealthConfig{
		Interval: o.healthInterval, Timeout: o.healthTimeout, StartPeriod: o.healthStart, StartInterval: o.healthStartInterval, Retries: o.healthRetries,
	}
	if o.healthCmd != "" {
		h.Test = []string{"CMD-SHELL", o.healthCmd}
	}
	return h, nil
}
