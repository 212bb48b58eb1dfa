package httpapi

import (
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/image"
)

// legacyImage is an image as it was inspected until 1.51. Its own fields hide
// those of today's type.
type legacyImage struct {
	*image.InspectResponse
	Parent        string
	Comment       string
	DockerVersion string
	Author        string
	Config        any
	VirtualSize   *int64 `json:",omitempty"` // until 1.43

	Container       *string `json:",omitempty"` // until 1.44
	ContainerConfig any     `json:",omitempty"` // until 1.44
}

// imageConfig is an image's configuration, with fields that were written even
// when empty until 1.51.
type imageConfig struct {
	User         string
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Env          []string
	Cmd          []string
	Healthcheck  *dockerspec.HealthcheckConfig `json:",omitempty"`
	ArgsEscaped  bool                          `json:",omitempty"`
	Volumes      map[string]struct{}
	WorkingDir   string
	Entrypoint   []string
	OnBuild      []string
	Labels       map[string]string
	StopSignal   string   `json:",omitempty"`
	Shell        []string `json:",omitempty"`
}

// containerLikeConfig has, as until 1.49, the fields of a container's
// configuration; an image never set them.
type containerLikeConfig struct {
	Hostname     string
	Domainname   string
	AttachStdin  bool
	AttachStdout bool
	AttachStderr bool
	Tty          bool
	OpenStdin    bool
	StdinOnce    bool
	Image        string
	imageConfig
}

// imageFor gives i the shape that it has in version v.
func imageFor(v Version, i *image.InspectResponse) any {
	if i.RepoTags == nil {
		i.RepoTags = []string{}
	}
	if i.RepoDigests == nil {
		i.RepoDigests = []string{}
	}
	if v < 48 {
		i.Descriptor = nil
	}
	if v < 53 {
		i.Identity = nil
	}
	if v >= 52 {
		return i
	}
	old := legacyImage{InspectResponse: i, Comment: i.Comment, Author: i.Author}
	var cfg imageConfig
	if c := i.Config; c != nil {
		cfg = imageConfig{
			User: c.User, ExposedPorts: c.ExposedPorts, Env: c.Env, Cmd: c.Cmd, Healthcheck: c.Healthcheck, ArgsEscaped: c.ArgsEscaped, //nolint:staticcheck // it was there
			Volumes: c.Volumes, WorkingDir: c.WorkingDir, Entrypoint: c.Entrypoint, OnBuild: c.OnBuild, Labels: c.Labels, StopSignal: c.StopSignal, Shell: c.Shell,
		}
	}
	if old.Config = any(cfg); v < 50 {
		old.Config = containerLikeConfig{imageConfig: cfg}
	}
	if v < 45 {
		old.Container, old.ContainerConfig = new(string), containerLikeConfig{}
	}
	if v < 44 {
		old.VirtualSize = &i.Size
	}
	return old
}

// legacySummary is an image as it was listed until 1.43.
type legacySummary struct {
	image.Summary
	VirtualSize int64
}

// imagesFor gives a list of images the shape that it has in version v. Only the
// disk usage tells how many containers use them, before 1.51.
func imagesFor(v Version, list []image.Summary, dropManifests, counted bool) any {
	for i := range list {
		s := &list[i]
		if s.RepoTags == nil {
			s.RepoTags = []string{}
		}
		if s.RepoDigests == nil {
			s.RepoDigests = []string{}
		}
		if dropManifests {
			s.Manifests = nil
		}
		if v < 51 && !counted {
			s.Containers = -1
		}
		if v < 48 {
			s.Descriptor = nil
		}
		if v < 43 && len(s.RepoTags) == 0 && len(s.RepoDigests) == 0 {
			s.RepoTags, s.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
	}
	if v >= 44 {
		if list == nil {
			list = []image.Summary{}
		}
		return list
	}
	old := make([]legacySummary, len(list))
	for i, s := range list {
		old[i] = legacySummary{s, s.Size}
	}
	return old
}
