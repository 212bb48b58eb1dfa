package cli

import (
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

type clientInfo struct {
	Debug bool
	clientVersion
	Plugins  []string
	Warnings []string
}

// infoData is what info prints and what its templates see.
type infoData struct {
	*system.Info `json:",omitempty"`
	ServerErrors []string    `json:",omitempty"`
	ClientInfo   *clientInfo `json:",omitempty"`
}

func infoCmd(cli *CLI, c *cobra.Command) {
	var format string
	inspectFormatFlag(c, &format)
	c.RunE = func(c *cobra.Command, _ []string) error {
		v := infoData{ClientInfo: &clientInfo{Debug: cli.opts.debug, clientVersion: cli.clientVersion(client.MaxVersion), Plugins: []string{}}}
		cl, err := cli.Client()
		if err == nil {
			var info system.Info
			if info, err = client.Get[system.Info](c.Context(), cl, "/info", nil); err == nil {
				v.Info = &info
			}
			v.ClientInfo.APIVersion = cl.CurrentVersion()
		}
		if err != nil {
			v.Info = &system.Info{}
			v.ServerErrors = []string{err.Error()}
		}
		if format != "" {
			t, terr := parseTemplate(format)
			if terr != nil {
				return terr
			}
			if terr := t.Execute(cli.Out, v); terr != nil {
				return terr
			}
			fmt.Fprintln(cli.Out)
			if err != nil {
				fmt.Fprintln(cli.Err, err)
				return StatusError{Code: 1}
			}
			return nil
		}
		printInfo(cli, v, err)
		if err != nil {
			return errors.New("errors pretty printing info")
		}
		return nil
	}
}

func printInfo(cli *CLI, v infoData, serverErr error) {
	w := cli.Out
	ci := v.ClientInfo
	fmt.Fprintln(w, "Client:")
	fmt.Fprintf(w, " Version:    %s\n Context:    %s\n Debug Mode: %t\n", ci.Version, ci.Context, ci.Debug)
	fmt.Fprintln(w, "\nServer:")
	if serverErr != nil {
		fmt.Fprintln(cli.Err, serverErr)
		return
	}
	printServerInfo(w, v.Info)
	for _, warning := range v.Warnings {
		fmt.Fprintln(cli.Err, warning)
	}
}

// line prints an indented key and value, when there is a value.
func line(w io.Writer, key string, value any) {
	if s := fmt.Sprint(value); s != "" {
		fmt.Fprintf(w, "%s: %s\n", key, s)
	}
}

func printServerInfo(w io.Writer, i *system.Info) {
	fmt.Fprintf(w, " Containers: %d\n  Running: %d\n  Paused: %d\n  Stopped: %d\n Images: %d\n", i.Containers, i.ContainersRunning, i.ContainersPaused, i.ContainersStopped, i.Images)
	line(w, " Server Version", i.ServerVersion)
	line(w, " Storage Driver", i.Driver)
	for _, kv := range i.DriverStatus {
		fmt.Fprintf(w, "  %s: %s\n", kv[0], kv[1])
	}
	for _, kv := range i.SystemStatus {
		fmt.Fprintf(w, " %s: %s\n", kv[0], kv[1])
	}
	line(w, " Logging Driver", i.LoggingDriver)
	line(w, " Cgroup Driver", i.CgroupDriver)
	line(w, " Cgroup Version", i.CgroupVersion)
	fmt.Fprintln(w, " Plugins:")
	fmt.Fprintf(w, "  Volume: %s\n  Network: %s\n", strings.Join(i.Plugins.Volume, " "), strings.Join(i.Plugins.Network, " "))
	if len(i.Plugins.Authorization) > 0 {
		fmt.Fprintf(w, "  Authorization: %s\n", strings.Join(i.Plugins.Authorization, " "))
	}
	fmt.Fprintf(w, "  Log: %s\n", strings.Join(i.Plugins.Log, " "))
	if len(i.CDISpecDirs) > 0 {
		fmt.Fprintln(w, " CDI spec directories:")
		for _, d := range i.CDISpecDirs {
			fmt.Fprintf(w, "  %s\n", d)
		}
	}
	if len(i.DiscoveredDevices) > 0 {
		fmt.Fprintln(w, " Discovered Devices:")
		for _, d := range i.DiscoveredDevices {
			fmt.Fprintf(w, "  %s: %s\n", d.Source, d.ID)
		}
	}
	printSwarm(w, &i.Swarm)
	if len(i.Runtimes) > 0 {
		fmt.Fprintf(w, " Runtimes: %s\n", strings.Join(sortedKeys(i.Runtimes), " "))
	}
	line(w, " Default Runtime", i.DefaultRuntime)
	if i.OSType == "linux" {
		printLinuxInfo(w, i)
	}
	line(w, " Kernel Version", i.KernelVersion)
	line(w, " Operating System", i.OperatingSystem)
	line(w, " OSType", i.OSType)
	line(w, " Architecture", i.Architecture)
	fmt.Fprintf(w, " CPUs: %d\n Total Memory: %s\n", i.NCPU, units.BytesSize(float64(i.MemTotal)))
	line(w, " Name", i.Name)
	line(w, " ID", i.ID)
	line(w, " Docker Root Dir", i.DockerRootDir)
	fmt.Fprintf(w, " Debug Mode: %t\n", i.Debug)
	if i.Debug {
		fmt.Fprintf(w, "  File Descriptors: %d\n  Goroutines: %d\n  System Time: %s\n  EventsListeners: %d\n", i.NFd, i.NGoroutines, i.SystemTime, i.NEventsListener)
	}
	line(w, " HTTP Proxy", i.HTTPProxy)
	line(w, " HTTPS Proxy", i.HTTPSProxy)
	line(w, " No Proxy", i.NoProxy)
	if len(i.Labels) > 0 {
		fmt.Fprintln(w, " Labels:")
		for _, l := range i.Labels {
			fmt.Fprintf(w, "  %s\n", l)
		}
	}
	fmt.Fprintf(w, " Experimental: %t\n", i.ExperimentalBuild)
	printRegistries(w, i)
	fmt.Fprintf(w, " Live Restore Enabled: %t\n", i.LiveRestoreEnabled)
	line(w, " Product License", i.ProductLicense)
	if len(i.DefaultAddressPools) > 0 {
		fmt.Fprintln(w, " Default Address Pools:")
		for _, p := range i.DefaultAddressPools {
			fmt.Fprintf(w, "   Base: %s, Size: %d\n", p.Base, p.Size)
		}
	}
	if f := i.FirewallBackend; f != nil {
		fmt.Fprintf(w, " Firewall Backend: %s\n", f.Driver)
		for _, kv := range f.Info {
			fmt.Fprintf(w, "  %s: %s\n", kv[0], kv[1])
		}
	}
	fmt.Fprintln(w)
}

func printLinuxInfo(w io.Writer, i *system.Info) {
	line(w, " Init Binary", i.InitBinary)
	line(w, " containerd version", i.ContainerdCommit.ID)
	line(w, " runc version", i.RuncCommit.ID)
	line(w, " init version", i.InitCommit.ID)
	if len(i.SecurityOptions) == 0 {
		return
	}
	fmt.Fprintln(w, " Security Options:")
	for _, o := range i.SecurityOptions {
		name := ""
		var rest [][2]string
		for _, kv := range strings.Split(o, ",") {
			k, v, ok := strings.Cut(kv, "=")
			switch {
			case !ok:
				name = kv
			case k == "name":
				name = v
			default:
				rest = append(rest, [2]string{k, v})
			}
		}
		fmt.Fprintf(w, "  %s\n", name)
		for _, kv := range rest {
			if kv[0] == "profile" {
				fmt.Fprintf(w, "   Profile: %s\n", kv[1])
			}
		}
	}
}

func printRegistries(w io.Writer, i *system.Info) {
	r := i.RegistryConfig
	if r == nil || len(r.InsecureRegistryCIDRs) == 0 && len(r.IndexConfigs) == 0 {
		return
	}
	fmt.Fprintln(w, " Insecure Registries:")
	for _, name := range sortedKeys(r.IndexConfigs) {
		if !r.IndexConfigs[name].Secure {
			fmt.Fprintf(w, "  %s\n", name)
		}
	}
	for _, p := range r.InsecureRegistryCIDRs {
		fmt.Fprintf(w, "  %s\n", p)
	}
	if len(r.Mirrors) > 0 {
		fmt.Fprintln(w, " Registry Mirrors:")
		for _, m := range r.Mirrors {
			fmt.Fprintf(w, "  %s\n", m)
		}
	}
}

func printSwarm(w io.Writer, s *swarm.Info) {
	state := string(s.LocalNodeState)
	fmt.Fprintf(w, " Swarm: %s\n", state)
	if s.LocalNodeState == swarm.LocalNodeStateInactive || s.LocalNodeState == swarm.LocalNodeStateLocked || state == "" {
		return
	}
	fmt.Fprintf(w, "  NodeID: %s\n", s.NodeID)
	line(w, "  Error", s.Error)
	fmt.Fprintf(w, "  Is Manager: %t\n", s.ControlAvailable)
	if s.Cluster != nil && s.ControlAvailable && s.Error == "" {
		fmt.Fprintf(w, "  ClusterID: %s\n  Managers: %d\n  Nodes: %d\n", s.Cluster.ID, s.Managers, s.Nodes)
	}
	fmt.Fprintf(w, "  Node Address: %s\n", s.NodeAddr)
	if len(s.RemoteManagers) > 0 {
		var addrs []string
		for _, m := range s.RemoteManagers {
			addrs = append(addrs, m.Addr)
		}
		sort.Strings(addrs)
		fmt.Fprintln(w, "  Manager Addresses:")
		for _, a := range addrs {
			fmt.Fprintf(w, "   %s\n", a)
		}
	}
}
