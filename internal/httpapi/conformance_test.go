package httpapi

import (
	enginecontainer "berth.dev/berth/internal/container"
	engineimage "berth.dev/berth/internal/image"
)

// The services have the signatures that the API asks for.
var (
	_ Lifecycle = (*enginecontainer.Service)(nil)
	_ Query     = enginecontainer.Views{}
	_ Streams   = enginecontainer.Streams{}
	_ Exec      = enginecontainer.Execs{}
	_           = WaitWith((*enginecontainer.Service)(nil).Wait)
	_ Images    = (*engineimage.Service)(nil)
	_ Transfer  = (*engineimage.Service)(nil)
)
