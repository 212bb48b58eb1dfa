package remote

import (
	"errors"
	"fmt"
	"net/netip"

	"berth.dev/berth/internal/plugin"
)

// Needs is what an IPAM driver says of itself.
type Needs struct {
	MAC    bool // the hardware address is to be named with each request for an address
	Replay bool // it forgets: after a restart of the engine everything is to be requested again
}

// IPAM is a plugin that hands out addresses.
type IPAM struct {
	caller
	needs Needs
}

// NewIPAM is the IPAM driver called name, which need not run yet.
func NewIPAM(name string, dirs plugin.Dirs) *IPAM {
	return &IPAM{caller: newCaller(name, ipamDriver, dirs)}
}

// Needs asks, once, what the driver needs. One that does not know the question needs nothing.
func (i *IPAM) Needs() (Needs, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.asked {
		return i.needs, nil
	}
	var a struct {
		IPAMAnswer
		RequiresMACAddress, RequiresRequestReplay bool
	}
	err := i.call("GetCapabilities", nil, &a)
	var e *plugin.Error
	if err != nil && !errors.As(err, &e) && a.Error == "" {
		return Needs{}, err
	}
	i.needs, i.asked = Needs{MAC: a.RequiresMACAddress, Replay: a.RequiresRequestReplay}, true
	return i.needs, nil
}

// Spaces are the names of the driver's default address spaces.
func (i *IPAM) Spaces() (local, global string, err error) {
	var a struct {
		IPAMAnswer
		LocalDefaultAddressSpace, GlobalDefaultAddressSpace string
	}
	err = i.call("GetDefaultAddressSpaces", nil, &a)
	return a.LocalDefaultAddressSpace, a.GlobalDefaultAddressSpace, err
}

// PoolRequest asks for a subnet: Pool, or any when it is empty.
type PoolRequest struct {
	AddressSpace string
	Pool         string // CIDR
	SubPool      string // CIDR
	Options      map[string]string
	V6           bool
}

// RequestPool takes a subnet. Data may name a gateway (under Gateway).
func (i *IPAM) RequestPool(r PoolRequest) (id string, pool netip.Prefix, data map[string]string, err error) {
	var a struct {
		IPAMAnswer
		PoolID, Pool string
		Data         map[string]string
	}
	if err = i.call("RequestPool", r, &a); err != nil {
		return "", pool, nil, err
	}
	if pool, err = netip.ParsePrefix(a.Pool); err != nil {
		_ = i.ReleasePool(a.PoolID)
		return "", pool, nil, fmt.Errorf("the IPAM driver %s answers with the pool %q: %w", i.p.Name, a.Pool, err)
	}
	return a.PoolID, pool, a.Data, nil
}

// ReleasePool gives a subnet back.
func (i *IPAM) ReleasePool(id string) error {
	return i.call("ReleasePool", struct{ PoolID string }{id}, &IPAMAnswer{})
}

// ErrNoAddress says that a driver answered without an address.
var ErrNoAddress = errors.New("no address returned")

// RequestAddress takes an address of a subnet: want, or any when it is not valid.
func (i *IPAM) RequestAddress(pool string, want netip.Addr, options map[string]string) (netip.Prefix, error) {
	var a struct {
		IPAMAnswer
		Address string
	}
	r := struct {
		PoolID, Address string
		Options         map[string]string
	}{PoolID: pool, Options: options}
	if want.IsValid() {
		r.Address = want.String()
	}
	if err := i.call("RequestAddress", r, &a); err != nil {
		return netip.Prefix{}, err
	}
	if a.Address == "" {
		return netip.Prefix{}, ErrNoAddress
	}
	p, err := netip.ParsePrefix(a.Address)
	if err != nil {
		return p, fmt.Errorf("the IPAM driver %s answers with the address %q: %w", i.p.Name, a.Address, err)
	}
	return p, nil
}

// ReleaseAddress gives an address back.
func (i *IPAM) ReleaseAddress(pool string, a netip.Addr) error {
	return i.call("ReleaseAddress", struct{ PoolID, Address string }{pool, a.String()}, &IPAMAnswer{})
}
