package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
	"text/template"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// header names the columns of a table by template field.
type header map[string]string

// Label is the column title of {{.Label "name"}}: the last part of the name.
func (h header) Label(name string) string {
	parts := strings.Split(name, ".")
	return strings.NewReplacer("-", " ", "_", " ").Replace(parts[len(parts)-1])
}

const (
	formatHelp = `Format output using a custom template:
'table':            Print output in table format with column headers (default)
'table TEMPLATE':   Print output in table format using the given Go template
'json':             Print in JSON format
'TEMPLATE':         Print output using the given Go template.
Refer to https://docs.docker.com/go/formatting/ for more information about formatting output with templates`
	inspectFormatHelp = `Format output using a custom template:
'json':             Print in JSON format
'TEMPLATE':         Print output using the given Go template.
Refer to https://docs.docker.com/go/formatting/ for more information about formatting output with templates`
)

// templateFuncs are the functions that templates may use.
func templateFuncs() template.FuncMap {
	return template.FuncMap{
		"json": func(v any) string {
			if _, ok := v.(rowJSON); ok {
				b, _ := marshalRow(v)
				return string(b)
			}
			b, _ := marshalTemplate(v)
			return strings.TrimSpace(string(b))
		},
		"split": strings.Split,
		"join":  joinAny,
		"title": titleCase,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"pad": func(s string, before, after int) string {
			if len(s) == 0 {
				return s
			}
			return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
		},
		"truncate": func(s string, n int) string {
			if utf8.RuneCountInString(s) <= n {
				return s
			}
			return string([]rune(s)[:n])
		},
	}
}

// headerFuncs let a template run over the titles of its columns.
func headerFuncs() template.FuncMap {
	same := func(v string) string { return v }
	return template.FuncMap{
		"json": same, "title": same, "lower": same, "upper": same,
		"split":    func(v, _ string) []string { return []string{v} },
		"join":     func(v any, _ string) string { return joinAny(v, "") },
		"truncate": func(v string, _ int) string { return v },
	}
}

func joinAny(v any, sep string) string {
	switch l := v.(type) {
	case []string:
		return strings.Join(l, sep)
	case string:
		return l
	}
	rv := reflect.ValueOf(v)
	if rv.Kind() != reflect.Slice {
		return fmt.Sprint(v)
	}
	s := make([]string, rv.Len())
	for i := range s {
		s[i] = fmt.Sprint(rv.Index(i).Interface())
	}
	return strings.Join(s, sep)
}

func titleCase(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func marshalTemplate(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.Bytes(), err
}

// parseTemplate reads a user's template.
func parseTemplate(s string) (*template.Template, error) {
	s = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(s)
	if s == "json" {
		s = "{{json .}}"
	}
	t, err := template.New("").Funcs(templateFuncs()).Parse(s)
	if err != nil {
		return nil, StatusError{Status: "template parsing error: " + err.Error(), Code: 64}
	}
	return t, nil
}

// render prints rows. A format is "table", "table TEMPLATE", "json" or a
// template; def is the table's template when no columns are given.
func render[T any](w io.Writer, format, def string, h header, rows []T) error {
	out, err := newRenderer(w, format, def, h)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if err := out.row(r); err != nil {
			return err
		}
	}
	return out.end()
}

// renderer prints rows one by one, for lists of several kinds and for streams.
type renderer struct {
	w     io.Writer
	t     *template.Template
	table bool
	head  header
	buf   bytes.Buffer
}

func newRenderer(w io.Writer, format, def string, h header) (*renderer, error) {
	table := false
	switch {
	case format == "" || format == "table":
		format, table = def, true
	case strings.HasPrefix(format, "table"):
		format, table = strings.TrimSpace(strings.TrimPrefix(format, "table")), true
	}
	if table {
		format = strings.TrimSpace(strings.TrimPrefix(format, "table"))
	}
	t, err := parseTemplate(format)
	if err != nil {
		var st StatusError
		if errors.As(err, &st) {
			st.Code = 1
			err = st
		}
		return nil, err
	}
	return &renderer{w: w, t: t, table: table, head: h}, nil
}

func (r *renderer) row(v any) error {
	if err := r.t.Execute(&r.buf, v); err != nil {
		return fmt.Errorf("template parsing error: %w", err)
	}
	r.buf.WriteByte('\n')
	return nil
}

func (r *renderer) end() error {
	if !r.table {
		_, err := r.w.Write(r.buf.Bytes())
		return err
	}
	tw := tabwriter.NewWriter(r.w, 10, 1, 3, ' ', 0)
	if err := r.t.Funcs(headerFuncs()).Execute(tw, r.head); err != nil {
		return err
	}
	fmt.Fprintln(tw)
	if _, err := tw.Write(r.buf.Bytes()); err != nil {
		return err
	}
	return tw.Flush()
}

// rowJSON gives a row its JSON form: one key for each method without arguments.
type rowJSON interface{ isRow() }

// row is embedded in every row type.
type row struct{}

func (row) isRow() {}

// marshalRow returns the JSON object of a row's methods.
func marshalRow(v any) ([]byte, error) {
	rv := reflect.ValueOf(v)
	m := map[string]any{}
	for i := range rv.NumMethod() {
		name, f := rv.Type().Method(i).Name, rv.Method(i)
		if name == "MarshalJSON" || f.Type().NumIn() != 0 || f.Type().NumOut() != 1 {
			continue
		}
		m[name] = f.Call(nil)[0].Interface()
	}
	return json.Marshal(m)
}

// hasField reports whether a template mentions a field.
func hasField(format, field string) bool {
	for i := strings.Index(format, "."+field); i >= 0; {
		rest := format[i+1+len(field):]
		if rest == "" || !isWord(rest[0]) {
			return true
		}
		j := strings.Index(rest, "."+field)
		if j < 0 {
			return false
		}
		i += 1 + len(field) + j
	}
	return false
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// inspectOut prints raw JSON objects: indented as an array, or through a template.
func inspectOut(w io.Writer, refs []string, format string, get func(ref string) ([]byte, error)) error {
	var (
		t    *template.Template
		err  error
		errs []error
		objs []json.RawMessage
		out  bytes.Buffer
	)
	if format != "" {
		if format != "json" {
			t, err = parseTemplate(format)
		}
		if err != nil {
			return err
		}
	}
	for _, ref := range refs {
		raw, err := get(ref)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if t == nil {
			objs = append(objs, raw)
			continue
		}
		var v any
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			return err
		}
		var one bytes.Buffer
		if err := t.Option("missingkey=error").Execute(&one, numbers(v)); err != nil {
			errs = append(errs, fmt.Errorf("template parsing error: %w", err))
			continue
		}
		out.Write(one.Bytes())
		out.WriteByte('\n')
	}
	if t == nil {
		if len(objs) == 0 {
			out.WriteString("[]\n")
		} else if err := writeArray(&out, objs, format == "json"); err != nil {
			return err
		}
	} else if out.Len() == 0 && len(errs) > 0 {
		out.WriteByte('\n')
	}
	if _, err := w.Write(out.Bytes()); err != nil {
		return err
	}
	if len(errs) == 0 {
		return nil
	}
	lines := make([]string, len(errs))
	for i, e := range errs {
		lines[i] = e.Error()
	}
	return StatusError{Status: strings.Join(lines, "\n"), Code: 1}
}

// writeArray prints the objects as one array: on one line, or indented.
func writeArray(out *bytes.Buffer, objs []json.RawMessage, oneLine bool) error {
	var all bytes.Buffer
	all.WriteByte('[')
	for i, o := range objs {
		if i > 0 {
			all.WriteByte(',')
		}
		all.Write(bytes.TrimSpace(o))
	}
	all.WriteByte(']')
	var err error
	if oneLine {
		err = json.Compact(out, all.Bytes())
	} else {
		err = json.Indent(out, all.Bytes(), "", "    ")
	}
	if err != nil {
		return err
	}
	out.WriteByte('\n')
	return nil
}

// numbers turns json.Number into int64 or float64, so that templates compare them.
func numbers(v any) any {
	switch x := v.(type) {
	case json.Number:
		if n, err := x.Int64(); err == nil {
			return n
		}
		f, _ := x.Float64()
		return f
	case map[string]any:
		for k, e := range x {
			x[k] = numbers(e)
		}
	case []any:
		for i, e := range x {
			x[i] = numbers(e)
		}
	}
	return v
}

func formatFlag(c *cobra.Command, p *string) { c.Flags().StringVar(p, "format", "", formatHelp) }

func inspectFormatFlag(c *cobra.Command, p *string) {
	c.Flags().StringVarP(p, "format", "f", "", inspectFormatHelp)
}
