package container

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"berth.dev/berth/internal/errs"
	netsvc "berth.dev/berth/internal/network"
)

// Links are the old way to find a neighbour on the default bridge: a line in
// /etc/hosts, and variables that tell its address, ports and environment.

// link is one link of a container, with what its target has now.
type link struct {
	target *Record
	alias  string
	ip     string
	addrs  []netip.Addr // ip, and that of IPv6
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

// maxSharers is how far the owner of a shared network is looked for: two that
// have been created to share each other's would never end it.
const maxSharers = 32

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
			continue // it was removed, and the link with it
		}
		// One that shares a network is reached where that network's owner is.
		for m, seen := c.Record().HostConfig.NetworkMode, 0; m.IsContainer() && seen < maxSharers; seen++ {
			owner := m.ConnectedContainer()
			if c, err = s.Get(owner); err != nil {
				return nil, errs.New(errs.Invalid, "could not get container for %s: %v", owner, err)
			}
			m = c.Record().HostConfig.NetworkMode
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
				l.ip, l.addrs = e.Addr4.Addr().String(), []netip.Addr{e.Addr4.Addr()}
				if e.Addr6.IsValid() {
					l.addrs = append(l.addrs, e.Addr6.Addr())
				}
			}
		}
		if l.ip == "" {
			return nil, errs.New(errs.Invalid, "Cannot link to /%s, as it does not belong to the default network", t.Name)
		}
		out = append(out, l)
	}
	return out, nil
}

// opens is what the firewall must let through for links.
func opens(list []link) []netsvc.Link {
	out := make([]netsvc.Link, 0, len(list))
	for _, l := range list {
		o := netsvc.Link{To: l.addrs}
		for p := range l.target.Config.ExposedPorts {
			o.Ports = append(o.Ports, p)
		}
		for p := range l.target.HostConfig.PortBindings {
			o.Ports = append(o.Ports, p)
		}
		out = append(out, o)
	}
	return out
}

// relink tells the containers that run and are linked to c, which has just started,
// where it is now.
func (s Nets) relink(c *Container) {
	if !s.linked.Load() || s.mainNetwork(c.Record()) != "bridge" {
		return
	}
	for _, p := range s.all() {
		r := p.Record()
		if len(r.HostConfig.Links) == 0 || !p.Status().Phase.Running() || !s.linksTo(r, c) {
			continue
		}
		links, _ := s.links(r) // those that run
		eps, _ := s.o.Networks.Endpoints(string(r.ID))
		err := s.rewriteHosts(r, eps, links)
		if err == nil {
			err = s.o.Networks.Relink(string(r.ID), opens(links))
		}
		if err != nil {
			s.o.Log.Warn("cannot tell a linked container the new address", "container", r.Name, "of", c.Record().Name, "error", err)
		}
	}
}

func (s Nets) linksTo(r *Record, c *Container) bool {
	for _, spec := range r.HostConfig.Links {
		ref, _ := cutLink(spec)
		if t, err := s.Get(ref); err == nil && t == c {
			return true
		}
	}
	return false
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

// bindLinks reads the links that a container asks for. They are kept by the target's
// id: a link follows its target when that is renamed.
func (s Nets) bindLinks(hc *container.HostConfig) ([]string, error) {
	if len(hc.Links) == 0 {
		return hc.Links, nil
	}
	out := make([]string, 0, len(hc.Links))
	for _, spec := range hc.Links {
		ref, alias := cutLink(spec)
		c, err := s.Get(ref)
		if err != nil {
			return nil, errs.New(errs.Invalid, "could not get container for %s: %v", ref, err)
		}
		out = append(out, string(c.Record().ID)+":"+alias)
	}
	return out, nil
}

// shownLinks is the links as inspect shows them: those whose targets are there.
func (s Nets) shownLinks(r *Record) []string {
	if len(r.HostConfig.Links) == 0 {
		return r.HostConfig.Links
	}
	out := make([]string, 0, len(r.HostConfig.Links))
	for _, spec := range r.HostConfig.Links {
		ref, alias := cutLink(spec)
		if c, err := s.Get(ref); err == nil {
			out = append(out, "/"+c.Record().Name+":/"+r.Name+"/"+alias)
		}
	}
	return out
}

// aliases are the names that links give to the containers of a list, by container.
func (s Nets) aliases(list []*Container) map[ID][]string {
	if !s.linked.Load() {
		return nil
	}
	out := map[ID][]string{}
	for _, c := range list {
		owner := c.Record()
		for _, spec := range owner.HostConfig.Links {
			id, alias := cutLink(spec)
			out[ID(id)] = append(out[ID(id)], "/"+owner.Name+"/"+alias)
		}
	}
	return out
}

// shownNames is the names of a container as ps shows them: its own, and those that
// links give it.
func shownNames(r *Record, aliases []string) []string {
	out := append([]string{"/" + r.Name}, aliases...)
	slices.Sort(out)
	return out
}

// linkTarget is the container that owner's link called alias leads to.
func (s *Service) linkTarget(owner, alias string) (*Container, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c := s.byID[s.names[owner]]; c != nil {
		for _, spec := range c.Record().HostConfig.Links {
			if id, a := cutLink(spec); a == alias && s.byID[ID(id)] != nil {
				return s.byID[ID(id)], nil
			}
		}
	}
	return nil, errNoContainer(owner + "/" + alias)
}

// removeLink ends a link, by its name: OWNER/ALIAS. A container that runs keeps its
// hosts file, but may not speak to the target any more where links were what let it.
func (s Nets) removeLink(ref string) error {
	name := "/" + strings.TrimPrefix(ref, "/")
	at := strings.LastIndexByte(name, '/')
	owner, alias := name[1:max(at, 1)], name[at+1:]
	if at == 0 {
		if _, err := s.Get(alias); err != nil {
			return err
		}
		return errs.New(errs.Conflict, "cannot remove the default link name of the container: %s", name)
	}
	s.mu.RLock()
	c := s.byID[s.names[owner]]
	s.mu.RUnlock()
	if c == nil {
		return errs.New(errs.Invalid, "cannot get parent /%s for link name %s", owner, name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := *c.Record()
	hc := *r.HostConfig
	hc.Links = slices.DeleteFunc(slices.Clone(hc.Links), func(spec string) bool { _, a := cutLink(spec); return a == alias })
	if len(hc.Links) == len(r.HostConfig.Links) {
		return errNoContainer(ref)
	}
	if len(hc.Links) == 0 {
		hc.Links = nil // as if there had been none
	}
	r.HostConfig = &hc
	if err := s.store(c, &r); err != nil {
		return err
	}
	if !c.Status().Phase.Running() {
		return nil
	}
	links, _ := s.links(&r)
	return s.o.Networks.Relink(string(r.ID), opens(links))
}
