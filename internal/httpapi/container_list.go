package httpapi

import "github.com/moby/moby/api/types/container"

type queryAPI struct{ backend Query }

func (a queryAPI) list(r *request) (response, error) {
	f, err := r.filters()
	if err != nil {
		return done(err)
	}
	o := ListOptions{All: r.flag("all"), Size: r.flag("size"), Filters: f}
	limit, err := r.optInt("limit")
	if err != nil {
		return done(err)
	}
	if limit != nil && *limit > 0 {
		o.Limit = *limit
	}
	list, err := a.backend.List(r.Context(), o)
	if err != nil {
		return done(err)
	}
	if list == nil {
		list = []container.Summary{}
	}
	for i := range list {
		fixSummary(r.version, &list[i])
	}
	return ok(list)
}

// fixSummary fills in what clients expect to be lists and maps, and clears
// what did not exist in version v.
func fixSummary(v Version, c *container.Summary) {
	if c.Ports == nil {
		c.Ports = []container.PortSummary{}
	}
	if c.Mounts == nil {
		c.Mounts = []container.MountPoint{}
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	if v < 46 {
		c.HostConfig.Annotations = nil
	}
	if v < 48 {
		c.ImageManifestDescriptor = nil
	}
	if v < 52 {
		c.Health = nil
	}
}
