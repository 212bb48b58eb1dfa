package httpapi

import (
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"berth.dev/berth/internal/errs"
)

type lifecycleAPI struct {
	backend Lifecycle
	opts    Options
}

// createBody is the create call's body, with the field that clients before
// 1.44 have the MAC address in.
type createBody struct {
	container.CreateRequest
	MacAddress string
}

func (a lifecycleAPI) create(r *request) (response, error) {
	if err := r.checkJSON(); err != nil {
		return done(err)
	}
	var body createBody
	if err := r.decodeBody(&body); err != nil {
		if errors.Is(err, io.EOF) {
			err = errs.New(errs.Invalid, "invalid JSON: got EOF while reading request body")
		}
		return done(err)
	}
	if body.Config == nil {
		return done(errs.New(errs.Invalid, "config cannot be empty in order to create a container"))
	}
	req := CreateRequest{Name: r.get("name"), Config: body.Config, HostConfig: body.HostConfig, NetworkingConfig: body.NetworkingConfig}
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	if req.NetworkingConfig == nil {
		req.NetworkingConfig = &network.NetworkingConfig{}
	}
	if req.NetworkingConfig.EndpointsConfig == nil {
		req.NetworkingConfig.EndpointsConfig = map[string]*network.EndpointSettings{}
	}
	if r.version >= 41 {
		req.Platform = r.get("platform")
	}
	a.defaultNetwork(&req)
	a.oldClient(r.version, &req)
	if eps := req.NetworkingConfig.EndpointsConfig; r.version < 44 && len(eps) > 1 {
		names := slices.Sorted(maps.Keys(eps))
		return done(errs.New(errs.Invalid, "Container cannot be created with multiple network endpoints: %s", strings.Join(names, ", ")))
	}
	warnings, err := macAddress(r.version, body.MacAddress, &req)
	if err != nil {
		return done(err)
	}
	if w := fillBindings(r.version, req.HostConfig.PortBindings); w != "" {
		warnings = append(warnings, w)
	}
	if l := req.HostConfig.PidsLimit; l != nil && *l <= 0 {
		req.HostConfig.PidsLimit = nil // "no limit", in two spellings
	}
	res, err := a.backend.Create(r.Context(), req)
	if err != nil {
		return done(err)
	}
	if res.Warnings = append(res.Warnings, warnings...); res.Warnings == nil {
		res.Warnings = []string{}
	}
	return created(res)
}

// fillBindings gives a port with an empty list of bindings one: any port of the host.
func fillBindings(v Version, ports network.PortMap) string {
	var empty []string
	for p, list := range ports {
		if len(list) == 0 {
			ports[p] = []network.PortBinding{{}}
			empty = append(empty, p.String())
		}
	}
	if len(empty) == 0 || v < 52 {
		return ""
	}
	slices.Sort(empty)
	return "Following container port(s) have an empty list of port-bindings: " + strings.Join(empty, ", ") + ". Such bindings will be discarded in a future version."
}

// defaultNetwork resolves the network mode "default".
func (a lifecycleAPI) defaultNetwork(req *CreateRequest) {
	hc := req.HostConfig
	if hc.NetworkMode != "" && hc.NetworkMode != network.NetworkDefault {
		return
	}
	hc.NetworkMode = container.NetworkMode(a.opts.DefaultNetwork)
	if ep, ok := req.NetworkingConfig.EndpointsConfig[network.NetworkDefault]; ok {
		delete(req.NetworkingConfig.EndpointsConfig, network.NetworkDefault)
		req.NetworkingConfig.EndpointsConfig[a.opts.DefaultNetwork] = ep
	}
}

// oldClient gives a request of an older version the meaning that it had then:
// fields that came later are cleared, defaults that have changed are set.
func (a lifecycleAPI) oldClient(v Version, req *CreateRequest) {
	hc, cfg := req.HostConfig, req.Config
	if v < 25 {
		hc.AutoRemove = false
	}
	if v < 40 && hc.IpcMode == "" {
		hc.IpcMode = container.IPCModeShareable
	}
	if v < 41 && !a.opts.CgroupV2 && hc.CgroupnsMode == "" {
		hc.CgroupnsMode = container.CgroupnsModeHost
	}
	if v < 42 {
		hc.ConsoleSize = [2]uint{}
	}
	if v < 43 {
		hc.Annotations = nil
	}
	if v < 44 && cfg.Healthcheck != nil {
		cfg.Healthcheck.StartInterval = 0
	}
	if v < 56 {
		hc.Umask = nil
	}
	for i := range hc.Mounts {
		oldMount(v, &hc.Mounts[i])
	}
	for _, ep := range req.NetworkingConfig.EndpointsConfig {
		if ep != nil && v < 48 {
			ep.GwPriority = 0
		}
	}
}

func oldMount(v Version, m *mount.Mount) {
	if v < 42 {
		// such combinations were not refused then
		if m.Type != mount.TypeVolume {
			m.VolumeOptions = nil
		}
		if m.Type != mount.TypeTmpfs {
			m.TmpfsOptions = nil
		}
		if m.Type != mount.TypeBind {
			m.BindOptions = nil
		}
	}
	if v < 44 && m.Type == mount.TypeBind {
		if m.BindOptions == nil {
			m.BindOptions = &mount.BindOptions{}
		}
		m.BindOptions.ReadOnlyNonRecursive, m.BindOptions.ReadOnlyForceRecursive = true, false
		if v < 40 {
			m.BindOptions.NonRecursive = false
		}
		if v < 42 {
			m.BindOptions.CreateMountpoint = false
		}
	}
	if v < 45 && m.VolumeOptions != nil {
		m.VolumeOptions.Subpath = ""
	}
	if v < 46 && m.TmpfsOptions != nil {
		m.TmpfsOptions.Options = nil
	}
}

const macDeprecated = "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."

// macAddress moves the container-wide MAC address, which clients before 1.52
// may send, to the endpoint on the container's main network.
func macAddress(v Version, mac string, req *CreateRequest) (warnings []string, err error) {
	if mac == "" || v >= 52 {
		return nil, nil
	}
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return nil, errs.New(errs.Invalid, "invalid MAC address: %s", mac)
	}
	mode := req.HostConfig.NetworkMode
	if mode.IsHost() || mode.IsContainer() {
		return nil, errs.New(errs.Invalid, "conflicting options: mac-address and the network mode")
	}
	if v >= 44 {
		warnings = []string{macDeprecated}
	}
	eps := req.NetworkingConfig.EndpointsConfig
	ep := eps[string(mode)]
	if ep == nil {
		if len(eps) == 1 && v >= 44 {
			for name, only := range eps {
				if only != nil {
					ep = only
				} else {
					ep = &network.EndpointSettings{}
					eps[name] = ep
				}
			}
		} else {
			ep = &network.EndpointSettings{}
			eps[string(mode)] = ep
		}
	}
	if len(ep.MacAddress) > 0 && ep.MacAddress.String() != network.HardwareAddr(hw).String() {
		return nil, errs.New(errs.Invalid, "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or should be left empty")
	}
	ep.MacAddress = network.HardwareAddr(hw)
	return warnings, nil
}
