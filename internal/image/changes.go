package image

import (
	"encoding/json"
	"maps"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
)

// ApplyChanges applies Dockerfile instructions, as "commit --change" and
// "import --change" take them, to a configuration.
func ApplyChanges(c *dockerspec.DockerOCIImageConfig, changes []string) error {
	*c = cloneConfig(*c)
	for _, line := range changes {
		for l := range strings.SplitSeq(line, "\n") {
			l = strings.TrimSpace(l)
			if l == "" || l[0] == '#' {
				continue
			}
			if err := applyChange(c, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// cloneConfig copies what a change may touch.
func cloneConfig(c dockerspec.DockerOCIImageConfig) dockerspec.DockerOCIImageConfig {
	c.Env = slices.Clone(c.Env)
	c.Cmd = slices.Clone(c.Cmd)
	c.Entrypoint = slices.Clone(c.Entrypoint)
	c.Labels = maps.Clone(c.Labels)
	c.Volumes = maps.Clone(c.Volumes)
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	c.OnBuild = slices.Clone(c.OnBuild)
	c.Shell = slices.Clone(c.Shell)
	return c
}

func applyChange(c *dockerspec.DockerOCIImageConfig, line string) error {
	word, rest, _ := strings.Cut(line, " ")
	name, rest := strings.ToUpper(word), strings.TrimSpace(rest)
	missing := errs.New(errs.Invalid, "%s requires at least one argument", name)
	one := errs.New(errs.Invalid, "%s requires exactly one argument", name)
	switch name {
	case "CMD":
		c.Cmd = command(c, rest)
	case "ENTRYPOINT":
		c.Entrypoint = command(c, rest)
	case "SHELL":
		list, ok := jsonList(rest)
		if !ok || len(list) == 0 {
			return errs.New(errs.Invalid, "SHELL requires the arguments to be in JSON form")
		}
		c.Shell = list
	case "USER":
		if rest == "" {
			return one
		}
		c.User = unquote(rest)
	case "WORKDIR":
		if rest == "" {
			return one
		}
		d := unquote(rest)
		if !path.IsAbs(d) {
			d = path.Join("/", c.WorkingDir, d)
		}
		c.WorkingDir = path.Clean(d)
	case "STOPSIGNAL":
		if rest == "" {
			return one
		}
		c.StopSignal = rest
	case "MAINTAINER":
		if rest == "" {
			return one
		}
	case "ONBUILD":
		if rest == "" {
			return missing
		}
		switch trigger, _, _ := strings.Cut(strings.ToUpper(rest), " "); trigger {
		case "ONBUILD":
			return errs.New(errs.Invalid, "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
		case "MAINTAINER", "FROM":
			return errs.New(errs.Invalid, "%s isn't allowed as an ONBUILD trigger", trigger)
		}
		c.OnBuild = append(c.OnBuild, rest)
	case "ENV", "LABEL":
		return applyPairs(c, name, rest)
	case "EXPOSE":
		if rest == "" {
			return missing
		}
		return applyPorts(c, strings.Fields(rest))
	case "VOLUME":
		list, ok := jsonList(rest)
		if !ok {
			list = strings.Fields(rest)
		}
		if len(list) == 0 {
			return missing
		}
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		for _, v := range list {
			if v = strings.TrimSpace(v); v == "" {
				return errs.New(errs.Invalid, "VOLUME specified can not be an empty string")
			}
			c.Volumes[v] = struct{}{}
		}
	case "HEALTHCHECK":
		return applyHealthcheck(c, rest)
	case "FROM", "RUN", "ADD", "COPY", "ARG":
		return errs.New(errs.Invalid, "%s is not a valid change command", name)
	default:
		return errs.New(errs.Invalid, "unknown instruction: %s", name)
	}
	return nil
}

// command reads the JSON or the shell form of a command.
func command(c *dockerspec.DockerOCIImageConfig, s string) []string {
	if list, ok := jsonList(s); ok {
		return list
	}
	shell := []string{"/bin/sh", "-c"}
	if len(c.Shell) > 0 {
		shell = slices.Clone(c.Shell)
	}
	return append(shell, s)
}

func jsonList(s string) ([]string, bool) {
	if !strings.HasPrefix(s, "[") {
		return nil, false
	}
	list := []string{}
	if json.Unmarshal([]byte(s), &list) != nil {
		return nil, false
	}
	return list, true
}

func applyPairs(c *dockerspec.DockerOCIImageConfig, name, rest string) error {
	words, err := splitWords(rest)
	if err != nil {
		return err
	}
	if len(words) == 0 {
		return errs.New(errs.Invalid, "%s requires at least one argument", name)
	}
	if !strings.Contains(words[0], "=") { // the old form: one name, then the value
		key, value, ok := strings.Cut(rest, " ")
		if !ok {
			return errs.New(errs.Invalid, "%s must have two arguments", name)
		}
		words = []string{key + "=" + unquote(strings.TrimSpace(value))}
	}
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok {
			return errs.New(errs.Invalid, "Syntax error - can't find = in %q. Must be of the form: name=value", w)
		}
		if key == "" {
			return errs.New(errs.Invalid, "%s names can not be blank", name)
		}
		if name == "LABEL" {
			if c.Labels == nil {
				c.Labels = map[string]string{}
			}
			c.Labels[key] = value
			continue
		}
		at := slices.IndexFunc(c.Env, func(e string) bool { k, _, _ := strings.Cut(e, "="); return k == key })
		if at >= 0 {
			c.Env[at] = key + "=" + value
		} else {
			c.Env = append(c.Env, key+"="+value)
		}
	}
	return nil
}

func applyPorts(c *dockerspec.DockerOCIImageConfig, ports []string) error {
	sort.Strings(ports)
	if c.ExposedPorts == nil {
		c.ExposedPorts = map[string]struct{}{}
	}
	for _, p := range ports {
		spec, proto, ok := strings.Cut(p, "/")
		if !ok || proto == "" {
			proto = "tcp"
		}
		proto = strings.ToLower(proto)
		if proto != "tcp" && proto != "udp" && proto != "sctp" {
			return errs.New(errs.Invalid, "invalid proto: %s", proto)
		}
		if i := strings.LastIndexByte(spec, ':'); i >= 0 {
			spec = spec[i+1:]
		}
		from, to, isRange := strings.Cut(spec, "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || a > b {
			return errs.New(errs.Invalid, "invalid containerPort: %s", spec)
		}
		for n := a; n <= b; n++ {
			c.ExposedPorts[strconv.FormatUint(n, 10)+"/"+proto] = struct{}{}
		}
	}
	return nil
}

func applyHealthcheck(c *dockerspec.DockerOCIImageConfig, rest string) error {
	h := dockerspec.HealthcheckConfig{}
	for strings.HasPrefix(rest, "--") {
		flag, after, _ := strings.Cut(rest, " ")
		rest = strings.TrimSpace(after)
		key, value, _ := strings.Cut(flag[2:], "=")
		if key == "retries" {
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 {
				return errs.New(errs.Invalid, "--retries cannot be negative (%s)", value)
			}
			h.Retries = n
			continue
		}
		at := map[string]*time.Duration{
			"interval": &h.Interval, "timeout": &h.Timeout, "start-period": &h.StartPeriod, "start-interval": &h.StartInterval,
		}[key]
		if at == nil {
			return errs.New(errs.Invalid, "Unknown flag: %s", key)
		}
		d, err := time.ParseDuration(value)
		if err != nil {
			return errs.New(errs.Invalid, "%w", err)
		}
		if d != 0 && d < time.Millisecond {
			return errs.New(errs.Invalid, "Interval %q cannot be less than %v", key, time.Millisecond)
		}
		*at = d
	}
	word, args, _ := strings.Cut(rest, " ")
	args = strings.TrimSpace(args)
	switch strings.ToUpper(word) {
	case "NONE":
		if args != "" {
			return errs.New(errs.Invalid, "HEALTHCHECK NONE takes no arguments")
		}
		h = dockerspec.HealthcheckConfig{Test: []string{"NONE"}}
	case "CMD":
		if args == "" {
			return errs.New(errs.Invalid, "Missing command after HEALTHCHECK CMD")
		}
		if list, ok := jsonList(args); ok {
			h.Test = append([]string{"CMD"}, list...)
		} else {
			h.Test = []string{"CMD-SHELL", args}
		}
	case "":
		return errs.New(errs.Invalid, "HEALTHCHECK requires at least one argument")
	default:
		return errs.New(errs.Invalid, "Unknown type %q in HEALTHCHECK (try CMD)", strings.ToUpper(word))
	}
	c.Healthcheck = &h
	return nil
}

// splitWords splits at blanks that no quote or backslash protects, and takes
// the quotes away.
func splitWords(s string) ([]string, error) {
	var words []string
	var w strings.Builder
	in, quote := false, byte(0)
	for i := 0; i < len(s); i++ {
		ch := s[i]
		switch {
		case quote != 0 && ch == quote:
			quote = 0
		case quote == '\'':
			w.WriteByte(ch)
		case ch == '\\' && i+1 < len(s) && (quote == 0 || s[i+1] == '"' || s[i+1] == '\\' || s[i+1] == '$'):
			i++
			w.WriteByte(s[i])
			in = true
		case quote != 0:
			w.WriteByte(ch)
		case ch == '"' || ch == '\'':
			quote, in = ch, true
		case ch == ' ' || ch == '\t':
			if in {
				words = append(words, w.String())
				w.Reset()
				in = false
			}
		default:
			w.WriteByte(ch)
			in = true
		}
	}
	if quote != 0 {
		return nil, errs.New(errs.Invalid, "unexpected end of statement while looking for matching %s-quote", map[byte]string{'"': "double", '\'': "single"}[quote])
	}
	if in {
		words = append(words, w.String())
	}
	return words, nil
}

func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}
