package ipam

import (
	"errors"
	"net/netip"
	"testing"
)

func TestSpace(t *testing.T) {
	s := NewSpace([]Pool{{netip.MustParsePrefix("10.0.0.0/22"), 24}, {netip.MustParsePrefix("fd00::/62"), 64}})
	host := []netip.Prefix{netip.MustParsePrefix("10.0.1.128/25")}
	var got []string
	for {
		p, err := s.Choose(false, host)
		if errors.Is(err, ErrExhausted) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p.String())
	}
	if len(got) != 3 || got[0] != "10.0.0.0/24" || got[1] != "10.0.2.0/24" || got[2] != "10.0.3.0/24" {
		t.Errorf("%v", got)
	}
	if err := s.Take(netip.MustParsePrefix("10.0.2.64/26")); !errors.Is(err, ErrOverlap) {
		t.Errorf("an overlap: %v", err)
	}
	s.Release(netip.MustParsePrefix("10.0.2.0/24"))
	if err := s.Take(netip.MustParsePrefix("10.0.2.64/26")); err != nil {
		t.Error(err)
	}
	for i, want := range []string{"fd00::/64", "fd00:0:0:1::/64"} {
		if p, err := s.Choose(true, nil); err != nil || p.String() != want {
			t.Errorf("%d: %s %v", i, p, err)
		}
	}
	if len(DefaultPools()) == 0 {
		t.Error("no pools")
	}
	all := NewSpace(DefaultPools())
	n := 0
	for ; ; n++ {
		if _, err := all.Choose(false, nil); err != nil {
			break
		}
	}
	if n < 900 {
		t.Errorf("%d networks fit", n)
	}
}

func TestSubnet(t *testing.T) {
	s := NewSubnet(netip.MustParsePrefix("10.1.0.0/29"), netip.Prefix{})
	if err := s.Take(netip.MustParseAddr("10.1.0.1")); err != nil {
		t.Fatal(err)
	}
	if err := s.Take(netip.MustParseAddr("10.1.0.1")); !errors.Is(err, ErrInUse) {
		t.Errorf("%v", err)
	}
	if err := s.Take(netip.MustParseAddr("10.2.0.1")); err == nil {
		t.Error("a foreign address is taken")
	}
	for _, want := range []string{"10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"} {
		if a, err := s.Choose(); err != nil || a.String() != want {
			t.Fatalf("%s %v, want %s", a, err, want)
		}
	}
	if _, err := s.Choose(); !errors.Is(err, ErrNoAddress) {
		t.Errorf("%v", err)
	}
	s.Release(netip.MustParseAddr("10.1.0.4"))
	if a, err := s.Choose(); err != nil || a.String() != "10.1.0.4" {
		t.Errorf("%s %v", a, err)
	}
	r := NewSubnet(netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("10.1.0.8/30"))
	for _, want := range []string{"10.1.0.8", "10.1.0.9", "10.1.0.10", "10.1.0.11"} {
		if a, err := r.Choose(); err != nil || a.String() != want {
			t.Fatalf("%s %v, want %s", a, err, want)
		}
	}
	if _, err := r.Choose(); !errors.Is(err, ErrNoAddress) {
		t.Errorf("%v", err)
	}
}
