package oci

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestChainIDs(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	got := ChainIDs([]digest.Digest{a, b, EmptyTar})
	if got[0] != a || got[1] != digest.FromString(a.String()+" "+b.String()) || got[2] != digest.FromString(got[1].String()+" "+EmptyTar.String()) {
		t.Fatal(got)
	}
	if digest.FromBytes(make([]byte, 1024)) != EmptyTar {
		t.Fatal("EmptyTar is not the digest of an empty tar")
	}
}
