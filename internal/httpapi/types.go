package httpapi

import (
	"github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Wire types by short names.
type (
	NetworkingConfig = network.NetworkingConfig
	Platform         = ocispec.Platform
)
