package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "berth.dev/berth/"

// layers is the import table: a package may import packages of lower layers
// only. A sub-package belongs to the layer of the nearest name that stands here.
// Packages of one layer see each other only where sameLayer says so.
var layers = [][]string{
	// 0, leaves: the standard library and x/sys only
	{"errs", "undo", "atomicfile", "linux", "memory", "idmap"},
	// 1, vocabulary: no I/O
	{"ref", "oci", "filter", "stdmux"},
	// 2, mechanisms: each usable alone, none knows a service
	{"state", "content", "archive", "snapshot", "registry", "runtime", "bundle", "keeper", "logs", "events", "cdi", "systemd", "plugin"},
	// 3, services
	{"volume", "network", "image", "container", "build", "system"},
	// 4, edges
	{"httpapi", "authz", "registryd", "client", "cli"},
	// 5, the engine as a process
	{"daemon"},
}

// sameLayer are the arrows inside a layer, each with its reason.
var sameLayer = map[string]string{
	"snapshot/copy → archive":    "copies trees as archives do",
	"snapshot/shift → archive":   "copies trees as archives do",
	"snapshot/shift → snapshot":  "its mounts",
	"snapshot/overlay → archive": "removes trees and reads whiteouts as archives do",
	"bundle → runtime":           "the OCI command line drives the runtime",
	"keeper → runtime":           "the keeper is what runs the runtime",
	"keeper → logs":              "the keeper writes the logs of containers",
	"container → image":          "a container is made from an image",
	"container → network":        "a container is attached to networks",
	"container → volume":         "a container mounts volumes",
	"build → image":              "a build makes images",
	"build → container":          "a build runs steps in containers",
	"system → container":         "disk usage and counts",
	"system → image":             "disk usage and counts",
	"system → network":           "counts",
	"system → volume":            "disk usage",
	"cli → client":               "the command line is a client of the API",
	"authz → httpapi":            "it answers what the API asks",
}

// lean programs hold memory for every container, or start for every command:
// what they must not reach, directly or not, and why.
var lean = []struct{ from, never, reason string }{
	{"internal/runtime", "net/http", "it is linked into the keeper, whose memory counts for each container"},
	{"internal/keeper", "net/http", "its memory counts for each container"},
	{"cmd/berth-keeper", "net/http", "its memory counts for each container"},
	{"cmd/berth-runtime", "net/http", "it starts for every container of other engines"},
	{"cmd/berth-keeper", module + "internal/logs/ship", "the keeper writes files and never waits for a network"},
	{"cmd/berth-keeper", module + "internal/logs/drivers", "the keeper writes files and never waits for a network"},
	{"cmd/berth-keeper", "crypto/tls", "its memory counts for each container"},
	{"cmd/berth-keeper", "text/template", "its memory counts for each container"},
	{"internal/runtime", module + "internal/state", "the database is berthd's alone"},
	{"internal/keeper", module + "internal/state", "the database is berthd's alone"},
	{"cmd/berth-keeper", module + "internal/state", "the database is berthd's alone"},
	{"cmd/berth-runtime", module + "internal/state", "the database is berthd's alone"},
	{"cmd/berth", module + "internal/daemon", "the command line talks to the API and nothing else"},
	{"cmd/berth", module + "internal/state", "the command line talks to the API and nothing else"},
	{"cmd/berth", module + "internal/registryd", "the registry is a server: berthd has it"},
	{"cmd/berth", "golang.org/x/net", "the command line starts in milliseconds"},
	{"cmd/berth", "google.golang.org/grpc", "the command line starts in milliseconds"},
	{"cmd/berth", "tags.cncf.io/container-device-interface", "devices are berthd's alone"},
	{"cmd/berth-keeper", "tags.cncf.io/container-device-interface", "devices are berthd's alone"},
	{"cmd/berth-keeper", "github.com/godbus/dbus", "systemd is berthd's alone"},
	{"cmd/berth-runtime", "github.com/godbus/dbus", "systemd is berthd's alone"},
	{"internal/daemon", "github.com/containerd/containerd", "own code"},
	{"internal/daemon", "github.com/opencontainers/runc", "own code"},
	{"internal/daemon", "github.com/docker/docker", "own code"},
	{"internal/registryd", "github.com/distribution/distribution", "own code"},
}

const (
	maxLines   = 800
	maxMethods = 40
	maxIface   = 6
)

// wide are interfaces with more methods than maxIface, with the reason.
var wide = map[string]string{}

type pkg struct {
	ImportPath, Dir, Name, Doc string
	GoFiles                    []string
	Imports, Deps              []string
	Standard                   bool
}

func load(t *testing.T) map[string]*pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,Name,Doc,GoFiles,Imports,Deps,Standard", "./internal/...", "./cmd/...")
	cmd.Dir = root(t)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, errOut.String())
	}
	all := map[string]*pkg{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = &p
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// short is a package's name in the tables, "" for what is not ours in internal.
func short(path string) string {
	s, ok := strings.CutPrefix(path, module+"internal/")
	if !ok {
		return ""
	}
	return s
}

// layer returns the layer of a package and the name that put it there.
func layer(name string) (int, string) {
	for n := name; n != "."; n = filepath.Dir(n) {
		for i, l := range layers {
			if slices.Contains(l, n) {
				return i, n
			}
		}
	}
	return -1, ""
}

// tooling are packages outside the product: nothing imports them.
var tooling = []string{"archtest", "enginetest", "image/mkstarter", "snapshot/snapshottest", "logs/logstest", "registry/registrytest", "bench"}

func isTooling(name string) bool {
	return slices.ContainsFunc(tooling, func(t string) bool { return name == t || strings.HasPrefix(name, t+"/") })
}

func TestImports(t *testing.T) {
	for _, p := range load(t) {
		from := short(p.ImportPath)
		if from == "" {
			if strings.HasPrefix(p.ImportPath, module+"cmd/") && len(imported(p)) > 1 {
				t.Errorf("%s imports %v: a main is flags, then one call into one package", p.ImportPath, imported(p))
			}
			continue
		}
		if isTooling(from) {
			continue
		}
		lf, nf := layer(from)
		if lf < 0 {
			t.Errorf("package %s stands in no layer: add it to the table in internal/archtest, and to docs/architecture.md", from)
			continue
		}
		for _, to := range imported(p) {
			lt, nt := layer(to)
			switch {
			case isTooling(to):
				t.Errorf("%s imports %s, which is for tests and the build", from, to)
			case lt < lf || nf == nt:
			case lt > lf:
				t.Errorf("%s (layer %d) imports %s (layer %d): imports point downward; let the lower package declare the small interface that it needs", from, lf, to, lt)
			case sameLayer[from+" → "+to] == "" && sameLayer[nf+" → "+nt] == "":
				t.Errorf("%s imports %s, both of layer %d: no such arrow is drawn in docs/architecture.md", from, to, lf)
			}
		}
		if lf == 0 {
			for _, i := range p.Imports {
				if strings.Contains(strings.Split(i, "/")[0], ".") && i != "golang.org/x/sys/unix" {
					t.Errorf("%s imports %s: a leaf stands on the standard library and x/sys only", from, i)
				}
			}
		}
	}
}

func imported(p *pkg) []string {
	var names []string
	for _, i := range p.Imports {
		if s := short(i); s != "" {
			names = append(names, s)
		}
	}
	return names
}

func TestLean(t *testing.T) {
	all := load(t)
	for _, rule := range lean {
		p := all[module+rule.from]
		if p == nil {
			continue // a program that is not there yet
		}
		for _, d := range p.Deps {
			if d == rule.never || strings.HasPrefix(d, rule.never+"/") {
				t.Errorf("%s reaches %s: %s\n\t%s", rule.from, d, rule.reason, strings.Join(chain(all, p.ImportPath, d), " → "))
				break
			}
		}
	}
	for _, from := range []string{"internal/runtime", "internal/keeper", "cmd/berth-keeper", "cmd/berth-runtime"} {
		p := all[module+from]
		if p == nil {
			continue
		}
		for _, d := range p.Deps {
			if l, name := layer(short(d)); short(d) != "" && l >= 3 {
				t.Errorf("%s reaches the service %s: %s", from, name, strings.Join(chain(all, p.ImportPath, d), " → "))
			}
		}
	}
	for _, p := range all {
		if s := short(p.ImportPath); s != "" && s != "daemon" && slices.Contains(p.Imports, module+"internal/daemon") {
			t.Errorf("%s imports daemon: only its main does", s)
		}
		for _, d := range p.Imports {
			if short(p.ImportPath) != "" && d == "C" {
				t.Errorf("%s uses cgo: every program is static", p.ImportPath)
			}
		}
	}
}

// chain returns one way along imports from a package to another.
func chain(all map[string]*pkg, from, to string) []string {
	before := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if at == to {
			var way []string
			for ; at != ""; at = before[at] {
				way = append([]string{strings.TrimPrefix(at, module)}, way...)
			}
			return way
		}
		if p := all[at]; p != nil {
			for _, i := range p.Imports {
				if _, seen := before[i]; !seen {
					before[i] = at
					queue = append(queue, i)
				}
			}
		}
	}
	return nil
}

func TestPackageDocs(t *testing.T) {
	for _, p := range load(t) {
		if strings.HasPrefix(p.ImportPath, module) && p.Doc == "" {
			t.Errorf("%s has no package doc: say what it models, in which words, with an example", strings.TrimPrefix(p.ImportPath, module))
		}
	}
}

func TestSizes(t *testing.T) {
	top := root(t)
	methods := map[string]int{}
	for _, dir := range []string{"internal", "cmd"} {
		err := filepath.WalkDir(filepath.Join(top, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(top, path)
			if n := bytes.Count(b, []byte("\n")); n > maxLines {
				t.Errorf("%s has %d lines, more than %d: it holds more than one thing", rel, n, maxLines)
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, b, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			inspect(t, rel, f, methods)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, n := range methods {
		if n > maxMethods {
			t.Errorf("type %s has %d methods, more than %d: it does the work of several types", name, n, maxMethods)
		}
	}
}

func inspect(t *testing.T, rel string, f *ast.File, methods map[string]int) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			switch {
			case n.Recv != nil && len(n.Recv.List) == 1:
				methods[fmt.Sprintf("%s.%s", filepath.Dir(rel), receiver(n.Recv.List[0].Type))]++
			case n.Name.Name == "init":
				t.Errorf("%s has an init function: nothing registers itself; the one who needs it builds it", rel)
			}
		case *ast.TypeSpec:
			i, ok := n.Type.(*ast.InterfaceType)
			name := filepath.Dir(rel) + "." + n.Name.Name
			if ok && i.Methods.NumFields() > maxIface && wide[name] == "" {
				t.Errorf("interface %s has %d methods, more than %d: declare what the consumer needs, compose the rest", name, i.Methods.NumFields(), maxIface)
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "context" && n.Sel.Name == "TODO" {
				t.Errorf("%s calls context.TODO: take the caller's context", rel)
			}
		}
		return true
	})
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return "?"
}
