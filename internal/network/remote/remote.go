// Package remote speaks with plugins that make networks or hand out addresses.
//
// The protocol is libnetwork's: POST /NetworkDriver.METHOD and /IpamDriver.METHOD with JSON
// bodies. A plugin's life, as this package's callers lead it:
//
//	NetworkDriver  GetCapabilities, CreateNetwork
//	               CreateEndpoint, Join, EndpointOperInfo, ProgramExternalConnectivity
//	               RevokeExternalConnectivity, Leave, DeleteEndpoint
//	               DeleteNetwork
//	IpamDriver     GetCapabilities, GetDefaultAddressSpaces, RequestPool
//	               RequestAddress, ReleaseAddress
//	               ReleasePool
//
// A plugin is reached when it is needed for the first time, never when an engine boots. One
// that does not listen is tried again for a while, as Docker does.
package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/plugin"
)

// Labels that the protocol's options have.
const (
	Generic      = "com.docker.network.generic"
	EnableIPv4   = "com.docker.network.enable_ipv4"
	EnableIPv6   = "com.docker.network.enable_ipv6"
	Internal     = "com.docker.network.internal"
	ExposedPorts = "com.docker.network.endpoint.exposedports"
	PortMap      = "com.docker.network.portmap"
	MacAddress   = "com.docker.network.endpoint.macaddress"
	Gateway      = "com.docker.network.gateway"
	AddressType  = "RequestAddressType"
)

const (
	networkDriver = "NetworkDriver"
	ipamDriver    = "IpamDriver"
	callTime      = time.Minute      // some ask a DHCP server, or a cluster
	retry         = 16 * time.Second // pauses of 1, 2, 4 and 8 seconds, as in Docker
)

// caller is what both kinds have in common.
type caller struct {
	p    *plugin.Plugin
	kind string

	mu    sync.Mutex
	asked bool // for its capabilities
}

func newCaller(name, kind string, dirs plugin.Dirs) caller {
	p := plugin.New(name, dirs)
	p.Time, p.Retry = callTime, retry
	return caller{p: p, kind: kind}
}

// call calls a method. The request of a container that goes away must not leave half an
// endpoint behind: ctx carries no cancellation here, callTime bounds the call.
func (c *caller) call(method string, in, out any) error {
	err := c.p.Call(context.Background(), c.kind, c.kind+"."+method, in, out)
	var e *plugin.Error
	switch {
	case err == nil:
	case errors.As(err, &e):
		return fmt.Errorf("%s.%s: %w", c.kind, method, e)
	case errs.Is(err, errs.NotFound):
		return errs.New(errs.NotFound, "could not find plugin %s in v1 plugin registry: plugin not found", c.p.Name)
	default:
		return err
	}
	if a, ok := out.(interface{ failed() string }); ok && a.failed() != "" {
		return errors.New("remote: " + a.failed())
	}
	return nil
}

// lacks reports whether a plugin has not got a method.
func lacks(err error) bool {
	var e *plugin.Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// Answer is what every answer of a NetworkDriver may hold.
type Answer struct{ Err string }

func (a *Answer) failed() string { return a.Err }

// IPAMAnswer is what every answer of an IpamDriver may hold.
type IPAMAnswer struct{ Error string }

func (a *IPAMAnswer) failed() string { return a.Error }

// Scope is what a driver says of itself.
type Scope struct {
	Data         string // "local" or "global"
	GatewayCheck bool   // it is asked whether a network needs a gateway's address
}

// Driver is a plugin that makes networks.
type Driver struct {
	caller
	scope Scope
}

// NewDriver is the driver called name, which need not run yet.
func NewDriver(name string, dirs plugin.Dirs) *Driver {
	return &Driver{caller: newCaller(name, networkDriver, dirs)}
}

// Capabilities asks, once, what the driver can do.
func (d *Driver) Capabilities() (Scope, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asked {
		return d.scope, nil
	}
	var a struct {
		Answer
		Scope, ConnectivityScope string
		GwAllocChecker           bool
	}
	if err := d.call("GetCapabilities", nil, &a); err != nil {
		return Scope{}, err
	}
	for _, s := range []string{a.Scope, a.ConnectivityScope} {
		if s != "local" && s != "global" && (s != "" || a.Scope == "") {
			return Scope{}, fmt.Errorf("invalid capability: expecting 'local' or 'global', got %s", a.Scope)
		}
	}
	d.scope, d.asked = Scope{Data: a.Scope, GatewayCheck: a.GwAllocChecker}, true
	return d.scope, nil
}

// IPAMData is one subnet of a network.
type IPAMData struct {
	AddressSpace string
	Pool         string            `json:",omitempty"` // CIDR
	Gateway      string            `json:",omitempty"` // CIDR
	AuxAddresses map[string]string `json:",omitempty"` // CIDR
}

// NetworkRequest makes a network.
type NetworkRequest struct {
	NetworkID string
	Options   map[string]any
	IPv4Data  []IPAMData
	IPv6Data  []IPAMData
}

// CreateNetwork makes a network.
func (d *Driver) CreateNetwork(r NetworkRequest) error {
	return d.call("CreateNetwork", r, &Answer{})
}

// DeleteNetwork removes it.
func (d *Driver) DeleteNetwork(id string) error {
	return d.call("DeleteNetwork", struct{ NetworkID string }{id}, &Answer{})
}

// NeedsGateway asks whether a network with these options needs addresses for gateways.
func (d *Driver) NeedsGateway(options map[string]any) (v4, v6 bool, err error) {
	s, err := d.Capabilities()
	if err != nil || !s.GatewayCheck {
		return true, true, err
	}
	var a struct {
		Answer
		SkipIPv4, SkipIPv6 bool
	}
	err = d.call("GwAllocCheck", struct{ Options map[string]any }{options}, &a)
	return !a.SkipIPv4, !a.SkipIPv6, err
}

// Interface is the addresses of an endpoint, CIDR; what is empty is not known.
type Interface struct {
	Address     string
	AddressIPv6 string
	MacAddress  string
}

type endpoint struct {
	NetworkID, EndpointID string
}

// CreateEndpoint makes an endpoint. What the plugin chooses itself comes back.
func (d *Driver) CreateEndpoint(network, id string, in Interface, options map[string]any) (Interface, error) {
	var a struct {
		Answer
		Interface *Interface
	}
	err := d.call("CreateEndpoint", struct {
		NetworkID, EndpointID string
		Interface             Interface
		Options               map[string]any
	}{network, id, in, options}, &a)
	if a.Interface == nil {
		a.Interface = &Interface{}
	}
	return *a.Interface, err
}

// Info asks what the plugin tells about an endpoint.
func (d *Driver) Info(network, id string) (map[string]any, error) {
	var a struct {
		Answer
		Value map[string]any
	}
	err := d.call("EndpointOperInfo", endpoint{network, id}, &a)
	return a.Value, err
}

// DeleteEndpoint removes an endpoint.
func (d *Driver) DeleteEndpoint(network, id string) error {
	return d.call("DeleteEndpoint", endpoint{network, id}, &Answer{})
}

// Route is a route that a plugin wants in the container.
type Route struct {
	Destination string // CIDR
	RouteType   int    // 0: by NextHop, 1: what is on the interface's own network
	NextHop     string
}

// Joined is what a plugin answers to Join.
type Joined struct {
	Answer
	InterfaceName *struct{ SrcName, DstName, DstPrefix string }
	Gateway       string
	GatewayIPv6   string
	StaticRoutes  []Route
	// DisableGatewayService says that a container needs no way out but by this network.
	DisableGatewayService bool
}

// Join connects an endpoint to a container, whose namespace is at the path sandbox while
// the call lasts.
func (d *Driver) Join(network, id, sandbox string, options map[string]any) (*Joined, error) {
	a := &Joined{}
	err := d.call("Join", struct {
		NetworkID, EndpointID, SandboxKey string
		Options                           map[string]any
	}{network, id, sandbox, options}, a)
	return a, err
}

// Leave is the opposite of Join.
func (d *Driver) Leave(network, id string) error {
	return d.call("Leave", endpoint{network, id}, &Answer{})
}

// Publish tells the plugin that a container's way to the world is by this endpoint, with its
// published ports in options. Plugins need not know it.
func (d *Driver) Publish(network, id string, options map[string]any) error {
	err := d.call("ProgramExternalConnectivity", struct {
		NetworkID, EndpointID string
		Options               map[string]any
	}{network, id, options}, &Answer{})
	if lacks(err) {
		return nil
	}
	return err
}

// Withdraw is the opposite of Publish.
func (d *Driver) Withdraw(network, id string) error {
	err := d.call("RevokeExternalConnectivity", endpoint{network, id}, &Answer{})
	if lacks(err) {
		return nil
	}
	return err
}
