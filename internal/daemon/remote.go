package daemon

import (
	"context"
	"os"

	"github.com/moby/moby/api/types/jsonstream"

	"berth.dev/berth/internal/httpapi"
	"berth.dev/berth/internal/image"
	"berth.dev/berth/internal/registry"
)

// registryConfig is what the client of registries takes of the configuration.
func registryConfig(c *Config) *registry.Config {
	return &registry.Config{
		Mirrors: c.Image.Mirrors, Insecure: c.Image.InsecureRegistries, CertDirs: []string{"/etc/berth/certs.d", "/etc/docker/certs.d"},
		UserAgent: "berth/" + Version,
	}
}

func remoteLimits(c *Config) image.RemoteLimits {
	return image.RemoteLimits{Downloads: c.Image.MaxConcurrentDownloads, Uploads: c.Image.MaxConcurrentUploads, Attempts: c.Image.MaxDownloadAttempts}
}

// setProxy makes the configured proxies those of the whole process, as the
// environment would.
func setProxy(p *ProxyConfig) {
	for _, v := range []struct{ value, upper, lower string }{
		{p.HTTP, "HTTP_PROXY", "http_proxy"}, {p.HTTPS, "HTTPS_PROXY", "https_proxy"}, {p.No, "NO_PROXY", "no_proxy"},
	} {
		if v.value != "" {
			_ = os.Setenv(v.upper, v.value) // fails for names only
			_ = os.Setenv(v.lower, v.value)
		}
	}
}

// remoteAPI gives what moves images the shape that the API asks for.
type remoteAPI struct {
	*image.Remote
	*registry.Client
}

func (r remoteAPI) Push(ctx context.Context, o httpapi.PushOptions, progress func(jsonstream.Message)) error {
	return r.Remote.Push(ctx, image.PushOptions(o), progress)
}

func (r remoteAPI) Pull(ctx context.Context, o httpapi.PullOptions, progress func(jsonstream.Message)) error {
	return r.Remote.Pull(ctx, image.PullOptions(o), progress)
}
