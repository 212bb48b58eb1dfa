package firewall

import (
	"net"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The parts that rules are made of. Each leaves or takes its value in register 1, but
// for keys and values of maps, which lie side by side in 4-byte registers.

func meta(k expr.MetaKey) []expr.Any { return []expr.Any{&expr.Meta{Key: k, Register: 1}} }

func equal(v []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: v}}
}

func differs(v []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: v}}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

var (
	accept     = verdict(expr.VerdictAccept)
	drop       = verdict(expr.VerdictDrop)
	masquerade = []expr.Any{&expr.Masq{}}

	// localAddress: the destination is an address of this host.
	localAddress = []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
	// translated: the connection came by a published port.
	translated = bits(expr.CtKeySTATUS, 0x20) // IPS_DST_NAT
	// established: the connection, or what it brings along, is known.
	established = bits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)

	// portKey: transport protocol . destination port.
	portKey = []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32},
		&expr.Payload{DestRegister: reg32 + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
	// pairKey: incoming interface . outgoing interface.
	pairKey = []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 2}}
)

func bits(key expr.CtKey, mask uint32) []expr.Any {
	zero := binaryutil.NativeEndian.PutUint32(0)
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: zero},
	}
}

func family(v int) []expr.Any {
	n := byte(unix.NFPROTO_IPV4)
	if v == 6 {
		n = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{n}}}
}

// network compares an address of the IP header with a subnet.
func network(offset uint32, p netip.Prefix) []expr.Any {
	addr := p.Masked().Addr().AsSlice()
	n := uint32(len(addr))
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: net.CIDRMask(p.Bits(), int(n)*8), Xor: make([]byte, n)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr},
	}
}

func saddr4(p netip.Prefix) []expr.Any { return network(12, p) }
func daddr4(p netip.Prefix) []expr.Any { return network(16, p) }
func daddr6(p netip.Prefix) []expr.Any { return network(24, p) }
func saddr6(p netip.Prefix) []expr.Any { return network(8, p) }

// addrPortKey: destination address . transport protocol . destination port.
func addrPortKey(v int) []expr.Any {
	offset, n := uint32(16), uint32(4)
	if v == 6 {
		offset, n = 24, 16
	}
	return []expr.Any{
		&expr.Payload{DestRegister: reg32, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32 + n/4},
		&expr.Payload{DestRegister: reg32 + n/4 + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// has looks the value of register 1 up in a set.
func (f *nft) has(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: f.sets[set].Name, SetID: f.sets[set].ID}}
}

// marked: the packet has a mark, as far as the mask tells.
func marked(mark, mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark & mask)},
	}
}

// sourceNAT has a packet leave by an address of the host, that of its interface if none is given.
func sourceNAT(a netip.Addr) []expr.Any {
	if !a.IsValid() {
		return masquerade
	}
	n := &expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1}
	if a.Is6() {
		n.Family = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Immediate{Register: 1, Data: a.AsSlice()}, n}
}

// linkKey: source address . destination address . transport protocol . destination port.
func linkKey(v int) []expr.Any {
	offset, n := uint32(12), uint32(8)
	if v == 6 {
		offset, n = 8, 32
	}
	return []expr.Any{
		&expr.Payload{DestRegister: reg32, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n}, // the addresses lie side by side
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32 + n/4},
		&expr.Payload{DestRegister: reg32 + n/4 + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// hasAt looks the key that begins at reg32 up in a set.
func (f *nft) hasAt(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg32, SetName: f.sets[set].Name, SetID: f.sets[set].ID}}
}

// lookup maps the key to an address, and a port, in the registers from regValue on.
func (f *nft) lookup(m string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg32, DestRegister: regValue, IsDestRegSet: true, SetName: f.sets[m].Name, SetID: f.sets[m].ID}}
}

// dnat sends a packet to the address at regValue, and the port that follows it
// where there is one.
func dnat(v int, withPort bool) []expr.Any {
	n := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: regValue}
	words := uint32(1)
	if v == 6 {
		n.Family, words = unix.NFPROTO_IPV6, 4
	}
	if withPort {
		n.RegProtoMin, n.Specified = regValue+words, true
	}
	return []expr.Any{n}
}
