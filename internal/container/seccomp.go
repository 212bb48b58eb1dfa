package container

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/keeper"
	"berth.dev/berth/internal/runtime"
)

// filters compiles seccomp profiles once. A profile's rules depend on the
// container's capabilities, so those are part of the key.
type filters struct {
	mu   sync.Mutex
	done map[string]*keeper.Filter
}

// of returns the filter of a container, nil for none.
func (f *filters) of(r *Record, spec *specs.Spec, daemonProfile string) (*keeper.Filter, error) {
	if r.HostConfig.Privileged {
		return nil, nil
	}
	profile := daemonProfile
	inline := securityOf(r.HostConfig).seccomp // the CLI sends the file's text
	if inline != "" {
		profile = ""
	}
	switch {
	case inline == "unconfined" || inline == "" && profile == "unconfined":
		return nil, nil
	case inline == "builtin":
		inline = ""
	case inline == "" && profile != "" && profile != "builtin":
		raw, err := os.ReadFile(profile)
		if err != nil {
			return nil, errs.Wrap(errs.Internal, err, "opening seccomp profile failed")
		}
		inline = string(raw)
	}
	sum := sha256.Sum256([]byte(inline + "\x00" + strings.Join(spec.Process.Capabilities.Bounding, ",")))
	key := hex.EncodeToString(sum[:8])
	f.mu.Lock()
	defer f.mu.Unlock()
	if have := f.done[key]; have != nil {
		return have, nil
	}
	var rules *specs.LinuxSeccomp
	var err error
	if inline == "" {
		rules, err = seccomp.GetDefaultProfile(spec)
	} else {
		if !json.Valid([]byte(inline)) {
			return nil, errs.New(errs.Invalid, "decoding seccomp profile failed: the profile is not valid JSON")
		}
		rules, err = seccomp.LoadProfile(inline, spec)
	}
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "invalid seccomp profile")
	}
	if rules == nil {
		return nil, nil
	}
	code, flags, err := runtime.CompileSeccomp(rules)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s", createText(err.Error()))
	}
	if f.done == nil {
		f.done = map[string]*keeper.Filter{}
	}
	f.done[key] = &keeper.Filter{Key: key, Code: code, Flags: flags}
	return f.done[key], nil
}
