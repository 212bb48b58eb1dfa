package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

const psTable = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"

var psHeader = header{
	"ID": "CONTAINER ID", "Names": "NAMES", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT", "RunningFor": "CREATED",
	"Ports": "PORTS", "State": "STATE", "Status": "STATUS", "Size": "SIZE", "Labels": "LABELS", "Mounts": "MOUNTS",
	"LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS", "Platform": "PLATFORM",
}

func psCmd(cli *CLI, c *cobra.Command) {
	var all, latest, noTrunc, quiet, size bool
	var last int
	var format string
	var filters filterValue
	f := c.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "Only display container IDs")
	f.BoolVarP(&size, "size", "s", false, "Display total file sizes")
	f.BoolVarP(&all, "all", "a", false, "Show all containers (default shows just running)")
	f.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	f.BoolVarP(&latest, "latest", "l", false, "Show the latest created container (includes all states)")
	f.IntVarP(&last, "last", "n", -1, "Show n last created containers (includes all states)")
	formatFlag(c, &format)
	f.VarP(&filters, "filter", "f", "Filter output based on conditions provided")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if format == "" && !quiet {
			format = cli.Config().PsFormat
		}
		q := url.Values{}
		if all {
			q.Set("all", "1")
		}
		if latest && last == -1 {
			last = 1
		}
		if last > 0 {
			q.Set("limit", strconv.Itoa(last))
		}
		if !f.Changed("size") && !quiet {
			size = hasField(format, "Size")
		}
		if size {
			q.Set("size", "1")
		}
		filters.query(q)
		if format != "" {
			if _, err := parseTemplate(format); err != nil {
				return errors.New("failed to parse template: " + strings.TrimPrefix(err.Error(), "template parsing error: "))
			}
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		if !size && (format == "" || format == "table") {
			raw, err := client.Get[[]byte](c.Context(), cl, "/containers/json", q)
			if err != nil {
				return err
			}
			list, err := psColumns(raw)
			if err != nil {
				return err
			}
			return psPlain(cli.Out, quiet, psRows(list, noTrunc))
		}
		list, err := client.Get[[]container.Summary](c.Context(), cl, "/containers/json", q)
		if err != nil {
			return err
		}
		def := psTable
		if size {
			def += "\t{{.Size}}"
		}
		if quiet {
			switch format {
			case "", "table":
				format = "{{.ID}}"
			case "raw":
				format = "container_id: {{.ID}}"
			}
		}
		if format == "raw" {
			format = "container_id: {{.ID}}\nimage: {{.Image}}\ncommand: {{.Command}}\ncreated_at: {{.CreatedAt}}\nstate: {{- pad .State 1 0}}\nstatus: {{- pad .Status 1 0}}\nnames: {{.Names}}\nlabels: {{- pad .Labels 1 0}}\nports: {{- pad .Ports 1 0}}\n"
			if size {
				format += "size: {{.Size}}\n"
			}
		}
		return render(cli.Out, format, def, psHeader, psRows(list, noTrunc))
	}
}

func psRows(list []container.Summary, full bool) []psRow {
	rows := make([]psRow, len(list))
	for i, s := range list {
		rows[i] = psRow{s: s, full: full}
	}
	return rows
}

// psColumns decodes what psTable shows, and nothing else.
func psColumns(raw []byte) (list []container.Summary, err error) {
	var s *container.Summary
	err = eachField(raw, func() {
		list = append(list, container.Summary{})
		s = &list[len(list)-1]
	}, func(name, value []byte) (err error) {
		switch string(name) {
		case "Id":
			s.ID, err = rawText(value)
		case "Names":
			err = json.Unmarshal(value, &s.Names)
		case "Image":
			s.Image, err = rawText(value)
		case "ImageID":
			s.ImageID, err = rawText(value)
		case "Command":
			s.Command, err = rawText(value)
		case "Created":
			s.Created, err = rawInt(value)
		case "Ports":
			err = json.Unmarshal(value, &s.Ports)
		case "Status":
			s.Status, err = rawText(value)
		}
		return err
	})
	return list, err
}

// psPlain prints psTable, or the ids alone, as render does but without a template.
func psPlain(w io.Writer, quiet bool, rows []psRow) error {
	out := bufio.NewWriterSize(w, 64<<10)
	if quiet {
		for _, r := range rows {
			out.WriteString(r.ID() + "\n")
		}
		return out.Flush()
	}
	tw := tabwriter.NewWriter(out, 10, 1, 3, ' ', 0)
	line := func(columns ...string) { _, _ = io.WriteString(tw, strings.Join(columns, "\t")+"\n") }
	h := psHeader
	line(h["ID"], h["Image"], h["Command"], h["RunningFor"], h["Status"], h["Ports"], h["Names"])
	for _, r := range rows {
		line(r.ID(), r.Image(), r.Command(), r.RunningFor(), r.Status(), r.Ports(), r.Names())
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	return out.Flush()
}

// psRow is one container of ps.
type psRow struct {
	row
	s    container.Summary
	full bool
}

func (r psRow) ID() string {
	if r.full {
		return r.s.ID
	}
	return shortID(r.s.ID)
}

func (r psRow) Names() string {
	var names []string
	for _, n := range r.s.Names {
		n = strings.TrimPrefix(n, "/")
		if !r.full && !strings.Contains(n, "/") {
			return n
		}
		names = append(names, n)
	}
	return strings.Join(names, ",")
}

func (r psRow) Image() string {
	image := r.s.Image
	if image == "" {
		return "<no image>"
	}
	if r.full {
		return image
	}
	if t := shortID(r.s.ImageID); t != "" && t == shortID(image) {
		return t
	}
	if n, err := parseRef(image); err == nil && n.tag != "" {
		n.digest = ""
		return n.familiar()
	}
	return image
}

func (r psRow) Command() string {
	cmd := r.s.Command
	if !r.full {
		cmd = ellipsis(cmd, 20)
	}
	return strconv.Quote(cmd)
}

func (r psRow) CreatedAt() string  { return time.Unix(r.s.Created, 0).String() }
func (r psRow) RunningFor() string { return ago(time.Unix(r.s.Created, 0)) }
func (r psRow) State() string      { return string(r.s.State) }
func (r psRow) Status() string     { return r.s.Status }
func (r psRow) Labels() string     { return joinLabels(r.s.Labels) }
func (r psRow) Ports() string      { return displayPorts(r.s.Ports) }

func (r psRow) Label(name string) string { return r.s.Labels[name] }

func (r psRow) Size() string {
	s := size3(float64(r.s.SizeRw))
	if r.s.SizeRootFs > 0 {
		s += " (virtual " + size3(float64(r.s.SizeRootFs)) + ")"
	}
	return s
}

func (r psRow) Platform() any {
	if d := r.s.ImageManifestDescriptor; d != nil && d.Platform != nil {
		return d.Platform
	}
	return nil
}

func (r psRow) Mounts() string {
	var out []string
	for _, m := range r.s.Mounts {
		name := m.Name
		if name == "" {
			name = m.Source
		}
		if !r.full {
			name = ellipsis(name, 15)
		}
		out = append(out, name)
	}
	return strings.Join(out, ",")
}

func (r psRow) LocalVolumes() string {
	n := 0
	for _, m := range r.s.Mounts {
		if m.Driver == "local" {
			n++
		}
	}
	return strconv.Itoa(n)
}

func (r psRow) Networks() string {
	if r.s.NetworkSettings == nil {
		return ""
	}
	return strings.Join(sortedKeys(r.s.NetworkSettings.Networks), ",")
}

// displayPorts writes ports with runs of numbers joined.
func displayPorts(ports []container.PortSummary) string {
	ports = append([]container.PortSummary(nil), ports...)
	sort.Slice(ports, func(i, j int) bool {
		a, b := ports[i], ports[j]
		switch {
		case a.PrivatePort != b.PrivatePort:
			return a.PrivatePort < b.PrivatePort
		case a.IP != b.IP:
			return a.IP.Less(b.IP)
		case a.PublicPort != b.PublicPort:
			return a.PublicPort < b.PublicPort
		}
		return a.Type < b.Type
	})
	type key struct{ ip, proto string }
	type run struct{ first, last uint16 }
	var out, mapped []string
	var order []key
	runs := map[key]*run{}
	text := func(k key, r *run) string {
		s := strconv.Itoa(int(r.first))
		if r.first != r.last {
			s += "-" + strconv.Itoa(int(r.last))
		}
		if k.ip != "" {
			s = net.JoinHostPort(k.ip, s) + "->" + s
		}
		return s + "/" + k.proto
	}
	for _, p := range ports {
		k := key{proto: p.Type}
		if p.IP.IsValid() {
			if p.PublicPort != p.PrivatePort {
				mapped = append(mapped, fmt.Sprintf("%s->%d/%s", net.JoinHostPort(p.IP.String(), strconv.Itoa(int(p.PublicPort))), p.PrivatePort, p.Type))
				continue
			}
			k.ip = p.IP.String()
		}
		switch r := runs[k]; {
		case r == nil:
			runs[k] = &run{p.PrivatePort, p.PrivatePort}
			order = append(order, k)
		case p.PrivatePort == r.last+1:
			r.last++
		case p.PrivatePort == r.last:
		default:
			out = append(out, text(k, r))
			runs[k] = &run{p.PrivatePort, p.PrivatePort}
		}
	}
	for _, k := range order {
		out = append(out, text(k, runs[k]))
	}
	return strings.Join(append(out, mapped...), ", ")
}
