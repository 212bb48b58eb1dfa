package system

import (
	"context"
	"runtime"
	"strconv"

	"github.com/moby/moby/api/types/system"
)

// Version tells which engine this is.
func (s *Service) Version(context.Context) (system.VersionResponse, error) {
	cfg, h := s.cfg.Load(), s.host()
	b := cfg.Build
	return system.VersionResponse{
		Platform:      system.PlatformInfo{Name: "Berth Engine"},
		Version:       b.Version,
		APIVersion:    b.APIVersion,
		MinAPIVersion: b.MinAPI,
		Os:            runtime.GOOS,
		Arch:          runtime.GOARCH,
		GitCommit:     b.GitCommit,
		GoVersion:     runtime.Version(),
		KernelVersion: h.kernel,
		Experimental:  cfg.Experimental,
		BuildTime:     b.Time,
		Components: []system.ComponentVersion{{
			Name:    "Engine",
			Version: b.Version,
			Details: map[string]string{
				"GitCommit":     b.GitCommit,
				"ApiVersion":    b.APIVersion,
				"MinAPIVersion": b.MinAPI,
				"Os":            runtime.GOOS,
				"Arch":          runtime.GOARCH,
				"GoVersion":     runtime.Version(),
				"KernelVersion": h.kernel,
				"BuildTime":     b.Time,
				"Experimental":  strconv.FormatBool(cfg.Experimental),
			},
		}},
	}, nil
}
