package archive

import (
	"context"

	"golang.org/x/sys/unix"
)

// CopyLayer is CopyTree for a layer of overlayfs, whose marks are kept, with
// other owners: what own makes of those in from.
func CopyLayer(ctx context.Context, from, to int, own func(Owner) (Owner, error)) error {
	return copyInto(ctx, from, to, own)
}

// opaque marks a directory that hides those of the layers below.
const opaque = overlayXattrs + "opaque"

// owner is whose a copy of a file is.
func (c *copier) owner(st *unix.Stat_t) (Owner, error) {
	o := Owner{int(st.Uid), int(st.Gid)}
	if c.own == nil {
		return o, nil
	}
	return c.own(o)
}

// marks copies what steers overlayfs, where that is wanted.
func (c *copier) marks(src, dst int) error {
	if c.own == nil {
		return nil
	}
	var value [16]byte
	n, err := unix.Fgetxattr(src, opaque, value[:])
	if err != nil {
		return nil //nolint:nilerr // there is none
	}
	return unix.Fsetxattr(dst, opaque, value[:n], 0)
}
