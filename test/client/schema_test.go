package client

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"berth.dev/berth/internal/enginetest"
)

// schemas is one version of the API's published description.
type schemas struct {
	Definitions map[string]*schema                  `yaml:"definitions"`
	Responses   map[string]struct{ Schema *schema } `yaml:"responses"`
	raw         struct {
		Paths map[string]yaml.Node `yaml:"paths"`
	}
}

type schema struct {
	Ref        string             `yaml:"$ref"`
	Type       any                `yaml:"type"`
	Properties map[string]*schema `yaml:"properties"`
	Items      *schema            `yaml:"items"`
	AllOf      []*schema          `yaml:"allOf"`
	Extra      yaml.Node          `yaml:"additionalProperties"`
	Required   []string           `yaml:"required"`
	Nullable   bool               `yaml:"x-nullable"`
}

func loadSchemas(t *testing.T, version int) *schemas {
	t.Helper()
	dir, err := apiDir()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "docs", fmt.Sprintf("v1.%d.yaml", version))
	if _, err := os.Stat(file); err != nil {
		file = filepath.Join(dir, "swagger.yaml")
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &schemas{}
	if err := yaml.Unmarshal(raw, s); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(raw, &s.raw); err != nil {
		t.Fatal(err)
	}
	return s
}

// apiDir is where the descriptions are: with the module, or beside the programs on
// a machine without Go.
func apiDir() (string, error) {
	if dir := os.Getenv("BERTH_API"); dir != "" {
		return dir, nil
	}
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	return strings.TrimSpace(string(out)), err
}

// answer is the schema of a path's answer.
func (s *schemas) answer(t *testing.T, method, path, status string) *schema {
	t.Helper()
	var p map[string]yaml.Node
	node := s.raw.Paths[path]
	if err := node.Decode(&p); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	var op struct {
		Responses map[string]struct {
			Schema *schema `yaml:"schema"`
			Ref    string  `yaml:"$ref"`
		} `yaml:"responses"`
	}
	m := p[method]
	if err := m.Decode(&op); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	r := op.Responses[status]
	if r.Ref != "" {
		return s.Responses[strings.TrimPrefix(r.Ref, "#/responses/")].Schema
	}
	return r.Schema
}

// flat resolves references and puts the parts of allOf together.
func (s *schemas) flat(x *schema) *schema {
	for x != nil && x.Ref != "" {
		x = s.Definitions[strings.TrimPrefix(x.Ref, "#/definitions/")]
	}
	if x == nil || len(x.AllOf) == 0 {
		return x
	}
	out := *x
	out.Properties = map[string]*schema{}
	for k, v := range x.Properties {
		out.Properties[k] = v
	}
	for _, part := range x.AllOf {
		p := s.flat(part)
		if p == nil {
			continue
		}
		for k, v := range p.Properties {
			out.Properties[k] = v
		}
		if out.Type == nil {
			out.Type = p.Type
		}
		if out.Items == nil {
			out.Items = p.Items
		}
		if out.Extra.IsZero() {
			out.Extra = p.Extra
		}
		out.Required = append(out.Required, p.Required...)
	}
	return &out
}

// check reports where v is not what x describes.
func (s *schemas) check(at string, v any, x *schema, bad func(at, why string)) {
	x = s.flat(x)
	if x == nil || v == nil {
		return // null stands for an empty value everywhere in this API
	}
	typ, _ := x.Type.(string)
	switch v := v.(type) {
	case map[string]any:
		if typ != "" && typ != "object" {
			bad(at, "an object where the description has "+typ)
			return
		}
		var extra *schema
		free := x.Properties == nil
		if !x.Extra.IsZero() && x.Extra.Kind == yaml.MappingNode {
			extra = &schema{}
			_ = x.Extra.Decode(extra)
		}
		for k, e := range v {
			switch p := x.Properties[k]; {
			case p != nil:
				s.check(at+"."+k, e, p, bad)
			case extra != nil:
				s.check(at+".*", e, extra, bad)
			case !free:
				bad(at+"."+k, "a field that the description has not")
			}
		}
		for _, k := range x.Required {
			if _, ok := v[k]; !ok {
				bad(at+"."+k, "a required field is missing")
			}
		}
	case []any:
		if typ != "" && typ != "array" {
			bad(at, "a list where the description has "+typ)
			return
		}
		for _, e := range v {
			s.check(at+"[]", e, x.Items, bad)
		}
	case string:
		if typ != "" && typ != "string" {
			bad(at, "a string where the description has "+typ)
		}
	case bool:
		if typ != "" && typ != "boolean" {
			bad(at, "a boolean where the description has "+typ)
		}
	case float64:
		if typ != "" && typ != "integer" && typ != "number" {
			bad(at, "a number where the description has "+typ)
		}
	}
}

// undescribed are fields that Docker's engines send too, though the description
// of the version does not have them, and why.
var undescribed = map[string]string{
	".DNSNames":                 "newer fields of a network's endpoint are not cut from older answers",
	".GwPriority":               "the same",
	"/networks[].EnableIPv4":    "newer fields of a network are not cut from older answers",
	"/networks/{id}.EnableIPv4": "the same",
	"/system/df.BuildCache":     "of type build cache, described elsewhere",
	"/system/df.BuilderSize":    "always 0, for clients before 1.42",
	"/system/df.LayersSize":     "1.52 answers in the old form and in the new one",
	"/system/df.Images":         "the same",
	"/system/df.Containers":     "the same",
	"/system/df.Volumes":        "the same",
}

func described(at string) bool {
	for k := range undescribed {
		if at == k || k[0] == '.' && strings.HasSuffix(at, k) {
			return false
		}
	}
	return true
}

// Each version's answers are what that version's published description says:
// no field of another time, none of another type, none missing that is required.
func TestSchemas(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	id := e.Docker("run", "-d", "--name", "described", "-p", "80", "--expose", "90", "-v", "/tmp:/host", "--tmpfs", "/t", "-m", "100m", "--health-cmd", "true", "--health-interval", "50ms", img, "sleep", "100")
	e.Docker("exec", "described", "touch", "/new")
	enginetest.Eventually(t, "healthy", func() bool { return healthOf(t, e.Client("docker"), "described").Status == "healthy" })
	var exec struct{ ID string }
	if status, text := e.Call(http.MethodPost, "/containers/"+id+"/exec", map[string]any{"Cmd": []string{"true"}}, &exec); status != http.StatusCreated {
		t.Fatal(text)
	}
	seen := map[string][]int{}
	for _, v := range []int{41, 43, 44, 46, 47, 48, 51, 52, 53, 56} {
		s := loadSchemas(t, v)
		for _, tc := range []struct{ path, target string }{
			{"/info", "/info"},
			{"/version", "/version"},
			{"/system/df", "/system/df"},
			{"/containers/json", "/containers/json?all=1&size=1"},
			{"/containers/{id}/json", "/containers/described/json?size=1"},
			{"/containers/{id}/top", "/containers/described/top"},
			{"/containers/{id}/changes", "/containers/described/changes"},
			{"/containers/{id}/stats", "/containers/described/stats?stream=0&one-shot=1"},
			{"/exec/{id}/json", "/exec/" + exec.ID + "/json"},
			{"/images/json", "/images/json?shared-size=1"},
			{"/images/{name}/json", "/images/" + img + "/json"},
			{"/images/{name}/history", "/images/" + img + "/history"},
			{"/networks", "/networks"},
			{"/networks/{id}", "/networks/none"},
		} {
			res, err := e.HTTP.Get(fmt.Sprintf("http://berth/v1.%d%s", v, tc.target))
			if err != nil {
				t.Fatal(err)
			}
			raw, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			var value any
			if err := json.Unmarshal(raw, &value); err != nil || res.StatusCode != http.StatusOK {
				t.Errorf("1.%d %s: %d %s", v, tc.target, res.StatusCode, raw)
				continue
			}
			s.check(tc.path, value, s.answer(t, "get", tc.path, "200"), func(at, why string) { seen[at+": "+why] = append(seen[at+": "+why], v) })
		}
	}
	var lines []string
	for what, versions := range seen {
		at, _, _ := strings.Cut(what, ":")
		if described(at) {
			lines = append(lines, fmt.Sprintf("%s, in 1.%d to 1.%d", what, versions[0], versions[len(versions)-1]))
		}
	}
	slices.Sort(lines)
	for _, l := range lines {
		t.Error(l)
	}
	e.Docker("rm", "-f", "described")
}
