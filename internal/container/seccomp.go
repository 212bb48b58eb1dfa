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

// seccompText returns the text of a container's profile, "" for the built-in
// one; none reports that it has no filter at all.
func seccompText(r *Record, daemonProfile string) (text string, none bool, err error) {
	profile := daemonProfile
	inline := securityOf(r.HostConfig).seccomp // the CLI sends the file's text
	if inline != "" {
		profile = ""
	} else if r.HostConfig.Privileged { // only a profile that it asks for
		return "", true, nil
	}
	switch {
	case inline == "unconfined" || inline == "" && profile == "unconfined":
		return "", true, nil
	case inline == "builtin":
		inline = ""
	case inline == "" && profile != "" && profile != "builtin":
		raw, err := os.ReadFile(profile)
		if err != nil {
			return "", false, errs.Wrap(errs.Internal, err, "opening seccomp profile failed")
		}
		inline = string(raw)
	}
	return inline, false, nil
}

// seccompRules are a profile's rules for a container with the capabilities of spec.
func seccompRules(text string, spec *specs.Spec) (rules *specs.LinuxSeccomp, err error) {
	if text == "" {
		rules, err = seccomp.GetDefaultProfile(spec)
	} else {
		if !json.Valid([]byte(text)) {
			return nil, errs.New(errs.Invalid, "decoding seccomp profile failed: the profile is not valid JSON")
		}
		rules, err = seccomp.LoadProfile(text, spec)
	}
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "invalid seccomp profile")
	}
	return rules, nil
}

// of returns the filter of a container, nil for none.
func (f *filters) of(r *Record, spec *specs.Spec, daemonProfile string) (*keeper.Filter, error) {
	inline, none, err := seccompText(r, daemonProfile)
	if none || err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(inline + "\x00" + strings.Join(spec.Process.Capabilities.Bounding, ",")))
	key := hex.EncodeToString(sum[:8])
	f.mu.Lock()
	defer f.mu.Unlock()
	if have := f.done[key]; have != nil {
		return have, nil
	}
	rules, err := seccompRules(inline, spec)
	if err != nil {
		return nil, err
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
