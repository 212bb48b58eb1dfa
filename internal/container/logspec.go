package container

import (
	"path/filepath"
	"strings"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/keeper"
	"berth.dev/berth/internal/logs"
)

// logSpec says where the output goes; nil for nowhere.
func (s launcher) logSpec(r *Record) (*keeper.LogSpec, error) {
	lc := r.HostConfig.LogConfig
	if lc.Type == "none" {
		return nil, nil
	}
	opts, err := logs.ParseOptions(lc.Type, lc.Config)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "failed to create task for container: failed to initialize logging driver")
	}
	attrs := logAttrs(r, lc.Config)
	return &keeper.LogSpec{Driver: lc.Type, Path: s.logPath(r.ID), MaxSize: opts.MaxSize, MaxFile: opts.MaxFile, Compress: opts.Compress, Attrs: attrs}, nil
}

func (s *Service) logPath(id ID) string {
	return filepath.Join(s.dir(id), string(id)+"-json.log")
}

// logAttrs picks the labels and variables that --log-opt labels= and env= name.
func logAttrs(r *Record, opts map[string]string) map[string]string {
	attrs := map[string]string{}
	for _, k := range strings.Split(opts["labels"], ",") {
		if v, ok := r.Config.Labels[strings.TrimSpace(k)]; ok {
			attrs[strings.TrimSpace(k)] = v
		}
	}
	for _, k := range strings.Split(opts["env"], ",") {
		for _, e := range r.Config.Env {
			if name, v, _ := strings.Cut(e, "="); k != "" && name == strings.TrimSpace(k) {
				attrs[name] = v
			}
		}
	}
	if len(attrs) == 0 {
		return nil
	}
	return attrs
}
