package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	apisystem "github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/authz"
	"berth.dev/berth/internal/cdi"
	enginecontainer "berth.dev/berth/internal/container"
	bus "berth.dev/berth/internal/events"
	"berth.dev/berth/internal/httpapi"
	"berth.dev/berth/internal/idmap"
	"berth.dev/berth/internal/image"
	enginenetwork "berth.dev/berth/internal/network"
	"berth.dev/berth/internal/network/ipam"
	"berth.dev/berth/internal/plugin"
	"berth.dev/berth/internal/registry"
	"berth.dev/berth/internal/runtime"
	"berth.dev/berth/internal/snapshot"
	"berth.dev/berth/internal/snapshot/copy"
	"berth.dev/berth/internal/snapshot/overlay"
	"berth.dev/berth/internal/state"
	"berth.dev/berth/internal/system"
	"berth.dev/berth/internal/systemd"
	"berth.dev/berth/internal/undo"
	"berth.dev/berth/internal/volume"
)

// Services is everything behind the API, built and running.
type Services struct {
	httpapi.Backends
	API    httpapi.Options
	Reload func(*Config) // takes up a changed configuration; may be nil
	Close  func(context.Context)
}

// NewServices builds the services in the order of their dependencies.
func NewServices(c *Config) (_ *Services, err error) {
	var u undo.Stack
	defer u.Run()
	ctx, log := context.Background(), slog.Default()
	keeperProgram, err := program("berth-keeper")
	if err != nil {
		return nil, err
	}
	ids, err := remap(c.UsernsRemap, idmap.HostFiles)
	if err != nil {
		return nil, err
	}
	dataRoot, err := setupRoot(c.DataRoot, ids)
	if err != nil {
		return nil, err
	}
	c = c.rooted(dataRoot, ids)

	plugins := new(authz.Chain)
	plugins.Set(c.AuthPlugins, plugin.DefaultDirs())
	if err := plugins.Check(ctx); err != nil {
		return nil, err
	}

	// 1. State, snapshots, events.
	db, err := state.Open(filepath.Join(c.DataRoot, "state"))
	if err != nil {
		return nil, err
	}
	u.Add(func() { _ = db.Close() })
	snapshots, err := snapshot.Choose(c.Storage.Driver, filepath.Join(c.DataRoot, "snapshots"),
		snapshot.Candidate{Names: []string{"overlay2", "overlay", "overlayfs"}, Open: func(root string) (snapshot.Driver, error) {
			return overlay.Open(filepath.Join(root, "overlay"))
		}},
		snapshot.Candidate{Names: []string{"vfs", "copy"}, Open: func(root string) (snapshot.Driver, error) { return copy.Open(filepath.Join(root, "copy")) }},
	)
	if err != nil {
		return nil, err
	}
	b := bus.New()
	id, err := system.EngineID(c.DataRoot)
	if err != nil {
		return nil, err
	}

	// 2. Images, volumes, networks, containers.
	var containers *enginecontainer.Service
	images, err := image.Open(ctx, image.Options{
		Root: c.DataRoot, DB: db, Snapshots: snapshots, Log: log,
		Running: func(holder string) bool { return containers != nil && containers.IsRunning(holder) },
		Event: func(action events.Action, id string, attributes map[string]string) {
			b.Log(events.ImageEventType, action, id, attributes)
		},
		Builtin: builtinImages(),
	})
	if err != nil {
		return nil, err
	}
	u.Add(func() { _ = images.Close() })
	registries := registry.New(registryConfig(c))
	remote, err := image.NewRemote(images, registries, remoteLimits(c))
	if err != nil {
		return nil, err
	}
	volumes, err := volume.Open(volumeOptions(c, db, b, ids))
	if err != nil {
		return nil, err
	}
	networks, err := enginenetwork.Open(enginenetwork.Options{
		DB: db, Log: log, Config: networkConfig(c),
		Event: func(action events.Action, id string, attributes map[string]string) {
			b.Log(events.NetworkEventType, action, id, attributes)
		},
	})
	if err != nil {
		return nil, err
	}
	u.Add(networks.Close)
	devices := cdi.New(c.CDISpecDirs)
	var scopes *systemd.Manager
	if c.Runtime.CgroupDriver == "systemd" {
		scopes = systemd.New(cgroupV2(), runtime.SharesToWeight, keeperProgram, "berth-scope", "hold")
	}
	containers, err = enginecontainer.Open(ctx, enginecontainer.Options{
		DataRoot: c.DataRoot, ExecRoot: c.ExecRoot, DB: db, Images: images, Snapshots: snapshots, Networks: networks, Volumes: volumes, Events: b, IDMap: ids,
		Defaults: containerDefaults(c), CDI: devices, Systemd: scopes, Slice: c.Default.CgroupParent, Log: log,
	}, keeperProgram)
	if err != nil {
		return nil, err
	}
	u.Release()

	// 3. The engine as a whole.
	sys := system.New(SystemConfig(c, id), system.Sources{
		Devices: devices.Devices,
		Counts: func() system.Counts {
			total, running, paused := containers.Counts()
			return system.Counts{Running: running, Paused: paused, Stopped: total - running - paused}
		},
		ImageCount: func() int {
			list, _ := images.List(ctx, image.ListOptions{All: true}) // without filters nothing fails
			return len(list)
		},
		Driver:    func() (string, [][2]string) { return snapshots.Name, driverStatus(snapshots.Name, c.DataRoot) },
		Listeners: b.Listeners,
		Containers: func(ctx context.Context) ([]container.Summary, error) {
			return enginecontainer.Views{Service: containers}.List(ctx, enginecontainer.ListOptions{All: true, Size: true})
		},
		Images: images.DiskUsage, Volumes: volumes.DiskUsage, VolumeDrivers: volumes.Drivers,
	})
	views, files := enginecontainer.Views{Service: containers}, enginecontainer.Files{Service: containers}
	edits, streams := enginecontainer.Edits{Service: containers}, enginecontainer.Streams{Service: containers}
	api := APIOptions(c)
	api.DefaultNetwork = networks.DefaultName()
	api.Authorizer = plugins
	return &Services{
		Backends: httpapi.Backends{
			System: sys, Events: b, Lifecycle: containers, Control: control{containers, edits, streams}, Query: views,
			Wait: httpapi.WaitWith(containers.Wait), Streams: streams, Exec: enginecontainer.Execs{Service: containers}, Archive: files,
			Update: edits, Prune: edits, Top: views, Changes: files, Stats: views, Export: files, Commit: files,
			Images: images, Transfer: images, Puller: remoteAPI{remote, registries}, Registry: remoteAPI{remote, registries}, Networks: networkAPI{networks}, Connector: enginecontainer.Nets{Service: containers}, Volumes: volumes, BuildCache: noBuildCache{},
		},
		API: api,
		Reload: func(c *Config) {
			c = c.rooted(dataRoot, ids)
			plugins.Set(c.AuthPlugins, plugin.DefaultDirs())
			if err := plugins.Check(ctx); err != nil {
				log.Warn(err.Error()) // requests are refused until it is there
			}
			edits.SetDefaults(containerDefaults(c))
			registries.Reload(registryConfig(c))
			remote.SetLimits(remoteLimits(c))
			sys.Reload(SystemConfig(c, id))
			b.Log(events.DaemonEventType, events.ActionReload, id, reloadAttributes(c))
		},
		Close: func(context.Context) {
			containers.Close()
			networks.Close()
			registries.Close()
			_ = images.Close()
			if err := db.Close(); err != nil {
				log.Error("cannot close the database", "error", err)
			}
		},
	}, nil
}

// volumeOptions are what the volume service is built from: volumes belong to the root of
// containers.
func volumeOptions(c *Config, db *state.DB, b *bus.Bus, ids *idmap.Mapping) volume.Options {
	o := volume.Options{
		Root: c.DataRoot, DB: db, Plugins: plugin.DefaultDirs(), Log: slog.Default(),
		Event: func(action events.Action, name string, attributes map[string]string) {
			b.Log(events.VolumeEventType, action, name, attributes)
		},
	}
	if ids != nil {
		uid, gid := ids.Root()
		o.UID, o.GID = int(uid), int(gid)
	}
	return o
}

// reloadAttributes is what the event of a reload tells: the options that a
// reload can change, as they are now.
func reloadAttributes(c *Config) map[string]string {
	text := func(v any) string {
		b, _ := json.Marshal(v) // plain values
		return string(b)
	}
	none := func(list []string) []string {
		if list == nil {
			return []string{}
		}
		return list
	}
	runtimes := map[string]apisystem.Runtime{system.DefaultRuntime: {}}
	for k, v := range c.Runtime.Runtimes {
		runtimes[k] = v
	}
	return map[string]string{
		"name": hostname(), "debug": strconv.FormatBool(c.Debug), "labels": text(none(c.Labels)), "live-restore": "true",
		"authorization-plugins": text(none(c.AuthPlugins)), "default-runtime": c.Runtime.Default, "runtimes": text(runtimes),
		"default-shm-size": strconv.FormatInt(c.Default.ShmSize, 10), "default-ipc-mode": c.Default.IpcMode, "default-cgroupns-mode": c.Default.CgroupnsMode,
		"insecure-registries": text(none(c.Image.InsecureRegistries)), "registry-mirrors": text(none(c.Image.Mirrors)),
		"max-concurrent-downloads": strconv.Itoa(c.Image.MaxConcurrentDownloads), "max-concurrent-uploads": strconv.Itoa(c.Image.MaxConcurrentUploads),
		"max-download-attempts": strconv.Itoa(c.Image.MaxDownloadAttempts), "features": text(c.Features),
		"shutdown-timeout": strconv.Itoa(int(c.ShutdownTimeout.Seconds())),
	}
}

func hostname() string {
	h, _ := os.Hostname()
	return h
}

// program finds one of the engine's own programs: beside this one, or on PATH.
func program(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("cannot find the program %s beside berthd or on PATH", name)
	}
	return filepath.Abs(p)
}

// cgroupParent is where the cgroups of containers are that name no parent: one
// place for each exec root, so that engines do not meet.
func cgroupParent(c *Config) string {
	if p := c.Default.CgroupParent; p != "" && c.Runtime.CgroupDriver != "systemd" { // a slice is no path
		return path.Clean("/" + p)
	}
	return "/" + engineName(c)
}

// engineName tells the engines of a machine apart, by their exec roots.
func engineName(c *Config) string {
	if c.ExecRoot == DefaultExecRoot {
		return "berth"
	}
	sum := sha256.Sum256([]byte(c.ExecRoot))
	return "berth-" + hex.EncodeToString(sum[:4])
}

func containerDefaults(c *Config) enginecontainer.Defaults {
	d := c.Default
	out := enginecontainer.Defaults{
		Runtime: system.DefaultRuntime, CgroupParent: cgroupParent(c), CgroupNS: container.CgroupnsMode(d.CgroupnsMode), IPC: container.IpcMode(d.IpcMode),
		ShmSize: d.ShmSize, Init: d.Init, NoNewPrivs: d.NoNewPrivs, LogDriver: d.LogDriver, LogOpts: d.LogOptions,
		Seccomp: d.SeccompProfile, Shutdown: c.ShutdownTimeout,
	}
	out.Runtimes = make(map[string]enginecontainer.Runtime, len(c.Runtime.Runtimes))
	for name, r := range c.Runtime.Runtimes {
		path := r.Path
		if b, ok := r.Options["BinaryName"].(string); ok && path == "" {
			path = b
		}
		if path == "" {
			path = name
		}
		out.Runtimes[name] = enginecontainer.Runtime{Path: path, Args: r.Args}
	}
	if c.Runtime.Default != "" {
		out.Runtime = c.Runtime.Default
	}
	for _, u := range d.Ulimits {
		out.Ulimits = append(out.Ulimits, u)
	}
	for _, a := range c.Network.DNS {
		out.DNS = append(out.DNS, a.String())
	}
	out.DNSSearch, out.DNSOptions, out.HostGateway = c.Network.DNSSearch, c.Network.DNSOptions, c.Network.HostGatewayIPs
	return out
}

// networkConfig is what the network service takes of the configuration, which
// was checked when it was read.
func networkConfig(c *Config) enginenetwork.Config {
	n := &c.Network
	prefix := func(s string) netip.Prefix {
		p, _ := netip.ParsePrefix(s)
		return p
	}
	out := enginenetwork.Config{
		Bridge: n.Bridge, BridgeIP: prefix(n.BridgeIP), BridgeIP6: prefix(n.BridgeIP6), FixedCIDR: prefix(n.FixedCIDR), FixedCIDR6: prefix(n.FixedCIDR6),
		Gateway: n.Gateway, Gateway6: n.Gateway6, DefaultIP: n.IP, MTU: n.MTU, ICC: n.ICC, Masquerade: n.IPMasq, Forward: n.IPForward, Firewall: n.IPTables, IPv6: n.IPv6,
		IPTables: n.FirewallBackend == "iptables", NoIPv6Rules: !n.IP6Tables, HostRules: n.HostRules,
		HostGateway: n.HostGatewayIPs, Table: engineName(c), AllowDirect: n.AllowDirect, Relay: n.UserlandProxy, Defaults: n.DefaultNetworkOpt,
	}
	out.Listening = c.listening
	if c.Program == "dockerd" { // what is written for that one looks for its bridge
		out.OwnBridge = "docker0"
	}
	out.Mark, out.MarkMask, _ = n.fwMark()
	for _, p := range n.AddressPools {
		out.Pools = append(out.Pools, ipam.Pool{Base: p.Base, Bits: p.Size})
	}
	return out
}

func driverStatus(name, root string) [][2]string {
	if name != "overlay2" {
		return nil
	}
	return [][2]string{{"Backing Filesystem", filesystemName(root)}, {"Supports d_type", "true"}, {"Using metacopy", "false"}, {"Native Overlay Diff", "true"}, {"userxattr", "false"}}
}

// networkAPI gives the network service the shape that the API asks for.
type networkAPI struct{ *enginenetwork.Service }

func (n networkAPI) Inspect(ctx context.Context, ref string, o httpapi.NetworkInspectOptions) (network.Inspect, error) {
	return n.Service.Inspect(ctx, ref, o.Scope)
}

// filesystemName names the filesystem that holds a directory.
func filesystemName(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "unknown"
	}
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "extfs", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
		unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.F2FS_SUPER_MAGIC: "f2fs",
	}
	if n, ok := names[int64(st.Type)]; ok {
		return n
	}
	return fmt.Sprintf("%#x", st.Type)
}

// control gathers the small changes of a container that the API has in one place.
type control struct {
	*enginecontainer.Service
	enginecontainer.Edits
	enginecontainer.Streams
}
