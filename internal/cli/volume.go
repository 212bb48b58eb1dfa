package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

func sortRows[T any](rows []T, key func(T) string) {
	sort.SliceStable(rows, func(i, j int) bool { return naturalLess(key(rows[i]), key(rows[j])) })
}

// volumeRow is one volume of volume ls and system df.
type volumeRow struct {
	row
	v volume.Volume
}

var volumeHeader = header{
	"Name": "VOLUME NAME", "Driver": "DRIVER", "Scope": "SCOPE", "Mountpoint": "MOUNTPOINT", "Labels": "LABELS", "Links": "LINKS", "Size": "SIZE",
	"Availability": "AVAILABILITY", "Group": "GROUP", "Status": "STATUS",
}

func (r volumeRow) Name() string             { return r.v.Name }
func (r volumeRow) Driver() string           { return r.v.Driver }
func (r volumeRow) Scope() string            { return r.v.Scope }
func (r volumeRow) Mountpoint() string       { return r.v.Mountpoint }
func (r volumeRow) Labels() string           { return joinLabels(r.v.Labels) }
func (r volumeRow) Label(name string) string { return r.v.Labels[name] }

func (r volumeRow) Links() string {
	if r.v.UsageData == nil {
		return "N/A"
	}
	return strconv.FormatInt(r.v.UsageData.RefCount, 10)
}

func (r volumeRow) Size() string {
	if r.v.UsageData == nil {
		return "N/A"
	}
	return humanSize(float64(r.v.UsageData.Size))
}

func (r volumeRow) Group() string {
	if r.v.ClusterVolume == nil {
		return "N/A"
	}
	return r.v.ClusterVolume.Spec.Group
}

func (r volumeRow) Availability() string {
	if r.v.ClusterVolume == nil {
		return "N/A"
	}
	return string(r.v.ClusterVolume.Spec.Availability)
}

func (r volumeRow) Status() string {
	c := r.v.ClusterVolume
	switch {
	case c == nil:
		return "N/A"
	case c.Info == nil || c.Info.VolumeID == "":
		return "pending creation"
	case len(c.PublishStatus) == 1:
		return "in use (1 node)"
	case len(c.PublishStatus) > 1:
		return fmt.Sprintf("in use (%d nodes)", len(c.PublishStatus))
	}
	return "created"
}

func volumeLsCmd(cli *CLI, c *cobra.Command) {
	var quiet, cluster bool
	var format string
	var filters filterValue
	f := c.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "Only display volume names")
	formatFlag(c, &format)
	f.VarP(&filters, "filter", "f", `Provide filter values (e.g. "dangling=true")`)
	f.BoolVar(&cluster, "cluster", false, "Display only cluster volumes, and use cluster volume list formatting")
	c.RunE = func(c *cobra.Command, _ []string) error {
		q := url.Values{}
		filters.query(q)
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		res, err := client.Get[volume.ListResponse](c.Context(), cl, "/volumes", q)
		if err != nil {
			return err
		}
		if format == "" && !quiet && !cluster {
			format = cli.Config().VolumesFormat
		}
		if quiet && (format == "" || format == "table") {
			format = "{{.Name}}"
		}
		def := "{{.Driver}}\t{{.Name}}"
		rows := []volumeRow{}
		for _, v := range res.Volumes {
			if !cluster || v.ClusterVolume != nil {
				rows = append(rows, volumeRow{v: v})
			}
		}
		if cluster {
			def = "{{.Name}}\t{{.Group}}\t{{.Driver}}\t{{.Availability}}\t{{.Status}}"
		}
		sortRows(rows, volumeRow.Name)
		return render(cli.Out, format, def, volumeHeader, rows)
	}
}

func volumeInspectCmd(cli *CLI, c *cobra.Command) {
	inspectGroup(cli, c, nil, func(ref string) string { return "/volumes/" + ref })
}

func volumeRmCmd(cli *CLI, c *cobra.Command) {
	var force bool
	c.Long = c.Short + ". You cannot remove a volume that is in use by a container."
	c.Flags().BoolVarP(&force, "force", "f", false, "Force the removal of one or more volumes")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		q := url.Values{}
		if force {
			q.Set("force", "1")
		}
		var errs []error
		for _, name := range args {
			if err := cl.Call(c.Context(), http.MethodDelete, "/volumes/"+name, q); err != nil {
				errs = append(errs, err)
				continue
			}
			fmt.Fprintln(cli.Out, name)
		}
		return errors.Join(errs...)
	}
}

func volumeUpdateCmd(cli *CLI, c *cobra.Command) {
	availability := "active"
	c.Flags().StringVar(&availability, "availability", "active", `Cluster Volume availability ("active", "pause", "drain")`)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		v, err := client.Get[volume.Volume](c.Context(), cl, "/volumes/"+args[0], nil)
		if err != nil {
			return err
		}
		if v.ClusterVolume == nil {
			return errors.New("can only update cluster volumes")
		}
		if c.Flags().Changed("availability") {
			v.ClusterVolume.Spec.Availability = volume.Availability(availability)
		}
		return cl.JSON(c.Context(), client.Request{
			Method: http.MethodPut, Path: "/volumes/" + v.ClusterVolume.ID,
			Query: url.Values{"version": {strconv.FormatUint(v.ClusterVolume.Version.Index, 10)}},
			Body:  struct{ Spec *volume.ClusterVolumeSpec }{&v.ClusterVolume.Spec},
		}, nil)
	}
}

func volumeCreateCmd(cli *CLI, c *cobra.Command) {
	var driver, name, group, scope, sharing, availability, kind string
	var required, limit bytesValue
	opts, secrets := kvMap(nil), kvMap(nil)
	labels, requisite, preferred := list(checkLabel), list(nil), list(nil)
	f := c.Flags()
	f.StringVarP(&driver, "driver", "d", "local", "Specify volume driver name")
	f.StringVar(&name, "name", "", "Specify volume name")
	f.Lookup("name").Hidden = true
	f.VarP(opts, "opt", "o", "Set driver specific options")
	f.Var(labels, "label", "Set metadata for a volume")
	f.StringVar(&group, "group", "", "Cluster Volume group (cluster volumes)")
	f.StringVar(&scope, "scope", "single", `Cluster Volume access scope ("single", "multi")`)
	f.StringVar(&sharing, "sharing", "none", `Cluster Volume access sharing ("none", "readonly", "onewriter", "all")`)
	f.StringVar(&availability, "availability", "active", `Cluster Volume availability ("active", "pause", "drain")`)
	f.StringVar(&kind, "type", "block", `Cluster Volume access type ("mount", "block")`)
	f.Var(secrets, "secret", "Cluster Volume secrets")
	f.Var(&limit, "limit-bytes", "Minimum size of the Cluster Volume in bytes")
	f.Var(&required, "required-bytes", "Maximum size of the Cluster Volume in bytes")
	f.Var(requisite, "topology-required", "A topology that the Cluster Volume must be accessible from")
	f.Var(preferred, "topology-preferred", "A topology that the Cluster Volume would be preferred in")
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 1 {
			if name != "" {
				return errors.New("conflicting options: cannot specify a volume-name through both --name and as a positional arg")
			}
			name = args[0]
		}
		req := volume.CreateRequest{Driver: driver, DriverOpts: opts.values, Name: name, Labels: pairs(labels.values)}
		cluster := false
		for _, n := range []string{"group", "scope", "sharing", "availability", "type", "secret", "limit-bytes", "required-bytes", "topology-required", "topology-preferred"} {
			cluster = cluster || f.Changed(n)
		}
		if cluster {
			spec := &volume.ClusterVolumeSpec{
				Group: group, AccessMode: &volume.AccessMode{Scope: volume.Scope(scope), Sharing: volume.SharingMode(sharing)},
				Availability:              volume.Availability(availability),
				CapacityRange:             &volume.CapacityRange{RequiredBytes: required.n, LimitBytes: limit.n},
				AccessibilityRequirements: &volume.TopologyRequirement{Requisite: topologies(requisite.values), Preferred: topologies(preferred.values)},
			}
			switch kind {
			case "mount":
				spec.AccessMode.MountVolume = &volume.TypeMount{}
			case "block":
				spec.AccessMode.BlockVolume = &volume.TypeBlock{}
			}
			for _, k := range sortedKeys(secrets.values) {
				spec.Secrets = append(spec.Secrets, volume.Secret{Key: k, Secret: secrets.values[k]})
			}
			req.ClusterVolumeSpec = spec
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		v, err := client.Post[volume.Volume](c.Context(), cl, "/volumes/create", nil, req)
		if err != nil {
			return err
		}
		fmt.Fprintln(cli.Out, v.Name)
		return nil
	}
}

func topologies(l []string) []volume.Topology {
	var out []volume.Topology
	for _, s := range l {
		out = append(out, volume.Topology{Segments: pairs(strings.Split(s, ","))})
	}
	return out
}
