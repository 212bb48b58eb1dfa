package container

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"

	"berth.dev/berth/internal/errs"
)

// Links are the old way to find a neighbour on the default bridge: a line in
// /etc/hosts, and variables that tell its address, ports and environment.

// link is one link of a container, with what its target has now.
type link struct {
	target *Record
	alias  string
	ip     string
}

func cutLink(spec string) (target, alias string) {
	target, alias, ok := strings.Cut(spec, ":")
	if !ok {
		alias = target
	}
	if i := strings.LastIndexByte(alias, '/'); i >= 0 { // "/web/db", as it is shown
		alias = alias[i+1:]
	}
	return strings.TrimPrefix(target, "/"), alias
}

// links resolves the links of a container on the default bridge. Their targets must run.
func (s Nets) links(r *Record) ([]link, error) {
	if len(r.HostConfig.Links) == 0 || !s.own(r) || s.mainNetwork(r) != "bridge" {
		return nil, nil
	}
	var out []link
	for _, spec := range r.HostConfig.Links {
		ref, alias := cutLink(spec)
		c, err := s.Get(ref)
		if err != nil {
			return nil, errs.New(errs.Invalid, "could not get container for %s: %v", ref, err)
		}
		t := c.Record()
		if t.HostConfig.NetworkMode.IsHost() {
			return nil, errs.New(errs.Invalid, "conflicting options: host type networking can't be used with links. This would result in undefined behavior")
		}
		if !c.Status().Phase.Running() {
			return nil, errs.New(errs.Invalid, "Cannot link to a non running container: /%s AS /%s/%s", t.Name, r.Name, alias)
		}
		l := link{target: t, alias: alias}
		eps, _ := s.o.Networks.Endpoints(string(t.ID))
		for _, e := range eps {
			if e.Network == s.o.Networks.ID("bridge") && e.Addr4.IsValid() {
				l.ip = e.Addr4.Addr().String()
			}
		}
		if l.ip == "" {
			return nil, errs.New(errs.Invalid, "Cannot link to /%s, as it does not belong to the default network", t.Name)
		}
		out = append(out, l)
	}
	return out, nil
}

// hosts is the link's line in /etc/hosts.
func (l link) hosts() string {
	names := []string{l.alias}
	for _, n := range []string{l.target.Config.Hostname, l.target.Name} {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return l.ip + "\t" + strings.Join(names, " ") + "\n"
}

// environment is the link's variables.
func (l link) environment(of string) []string {
	prefix := strings.ToUpper(strings.ReplaceAll(l.alias, "-", "_"))
	env := []string{fmt.Sprintf("%s_NAME=/%s/%s", prefix, of, l.alias)}
	var ports []network.Port
	for p := range l.target.Config.ExposedPorts {
		ports = append(ports, p)
	}
	slices.SortFunc(ports, func(a, b network.Port) int {
		if a.Num() != b.Num() {
			return int(a.Num()) - int(b.Num())
		}
		return -strings.Compare(string(a.Proto()), string(b.Proto())) // tcp before udp is Docker's way round
	})
	for i, p := range ports {
		url := fmt.Sprintf("%s://%s:%d", p.Proto(), l.ip, p.Num())
		if i == 0 {
			env = append(env, prefix+"_PORT="+url)
		}
		at := fmt.Sprintf("%s_PORT_%d_%s", prefix, p.Num(), strings.ToUpper(string(p.Proto())))
		env = append(env, at+"="+url, at+"_ADDR="+l.ip, fmt.Sprintf("%s_PORT=%d", at, p.Num()), at+"_PROTO="+string(p.Proto()))
	}
	for _, e := range l.target.Config.Env {
		if name, _, ok := strings.Cut(e, "="); ok && name != "HOME" && name != "PATH" {
			env = append(env, prefix+"_ENV_"+e)
		}
	}
	return env
}

// shownLinks is the links as inspect shows them.
func (s Nets) shownLinks(r *Record) []string {
	if len(r.HostConfig.Links) == 0 {
		return r.HostConfig.Links
	}
	out := make([]string, 0, len(r.HostConfig.Links))
	for _, spec := range r.HostConfig.Links {
		ref, alias := cutLink(spec)
		if c, err := s.Get(ref); err == nil {
			ref = c.Record().Name
		}
		out = append(out, "/"+ref+":/"+r.Name+"/"+alias)
	}
	return out
}
