package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// What the linker sets (-X berth.dev/berth/internal/cli.version=…).
var (
	version   = "0.1.0-dev"
	gitCommit = "unknown"
	buildTime = ""
)

// builder adds flags and RunE to a command.
type builder func(cli *CLI, c *cobra.Command)

// app is the command tree of one invocation.
type app struct {
	cli  *CLI
	lazy map[*cobra.Command]builder
}

// entry describes one command: its place in the tree, texts, arguments and builder.
type entry struct {
	use, short string
	lo, hi     int // number of arguments; hi < 0 is no limit
	build      builder
	top        string // its name at the top level, when it has one ("ps" for container ls)
	alias      string // other names inside its group
	topAlias   string // other names at the top level
	hidden     bool
	common     string // rank among the common commands
}

// group is a management command.
type group struct {
	name, short string
	entries     []entry
}

// run executes one command line.
func (cli *CLI) run(ctx context.Context, args []string) error {
	a := &app{cli: cli, lazy: map[*cobra.Command]builder{}}
	words := args[1:]
	root := a.root(words)
	root.SetArgs(words)
	root.SetIn(cli.In)
	root.SetOut(cli.Out)
	root.SetErr(cli.Err)
	a.resolve(root, words)
	return root.ExecuteContext(ctx)
}

// resolve builds the commands that the words name, and only those.
func (a *app) resolve(root *cobra.Command, words []string) {
	if len(words) > 0 && (words[0] == "help" || words[0] == cobra.ShellCompRequestCmd || words[0] == cobra.ShellCompNoDescRequestCmd) {
		words = words[1:]
	}
	c := root
	for i := 0; i < len(words); i++ {
		w := words[i]
		if strings.HasPrefix(w, "-") {
			if c == root && takesValue(root, w) {
				i++
			}
			continue
		}
		next := child(c, w)
		if next == nil {
			return
		}
		c = next
		if b := a.lazy[c]; b != nil {
			delete(a.lazy, c)
			b(a.cli, c)
			return
		}
	}
}

// first returns the first word that is not a global flag, or "".
func first(root *cobra.Command, words []string) string {
	for i := 0; i < len(words); i++ {
		if !strings.HasPrefix(words[i], "-") {
			return words[i]
		}
		if takesValue(root, words[i]) {
			i++
		}
	}
	return ""
}

// takesValue reports whether the next word belongs to this global flag.
func takesValue(root *cobra.Command, w string) bool {
	if strings.Contains(w, "=") {
		return false
	}
	if name, ok := strings.CutPrefix(w, "--"); ok {
		f := root.Flags().Lookup(name)
		return f != nil && f.NoOptDefVal == ""
	}
	f := root.Flags().ShorthandLookup(w[len(w)-1:])
	return f != nil && f.NoOptDefVal == "" && strings.Index(w, f.Shorthand) == len(w)-1
}

func child(c *cobra.Command, name string) *cobra.Command {
	for _, s := range c.Commands() {
		if s.Name() == name || s.HasAlias(name) {
			return s
		}
	}
	return nil
}

// root makes the tree. When the words name a command of the tables, the tree
// has only that command or group; else (help, completion, a typing error) all.
func (a *app) root(words []string) *cobra.Command {
	o := &a.cli.opts
	var showVersion bool
	root := &cobra.Command{
		Use:              program + " [OPTIONS] COMMAND [ARG...]",
		Short:            "A self-sufficient runtime for containers",
		SilenceUsage:     true,
		SilenceErrors:    true,
		TraverseChildren: true,
		RunE: func(c *cobra.Command, args []string) error {
			if showVersion {
				fmt.Fprintf(a.cli.Out, "%s version %s, build %s\n", product, version, gitCommit)
				return nil
			}
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			fmt.Fprint(a.cli.Out, a.helpText(c))
			return nil
		},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			switch o.logLevel {
			case "debug", "info", "warn", "error", "fatal", "warning", "trace", "panic":
				return nil
			}
			return fmt.Errorf("Unable to parse logging level: %s", o.logLevel) //nolint:staticcheck // Docker's words
		},
		DisableFlagsInUseLine: true,
		CompletionOptions:     cobra.CompletionOptions{DisableDefaultCmd: true}, // ours is below
	}
	dir := a.cli.configDir()
	f := root.Flags()
	f.SetInterspersed(false)
	f.StringVar(&o.configDir, "config", dir, "Location of client config files")
	f.StringVarP(&o.context, "context", "c", "", `Name of the context to use to connect to the daemon (overrides DOCKER_HOST env var and default context set with "`+program+` context use")`)
	f.BoolVarP(&o.debug, "debug", "D", false, "Enable debug mode")
	hosts := list(nil)
	f.VarP(hosts, "host", "H", "Daemon socket to connect to")
	f.StringVarP(&o.logLevel, "log-level", "l", "info", `Set the logging level ("debug", "info", "warn", "error", "fatal")`)
	f.BoolVar(&o.tls, "tls", a.cli.getenv("DOCKER_TLS") != "", "Use TLS; implied by --tlsverify")
	f.StringVar(&o.ca, "tlscacert", filepath.Join(dir, "ca.pem"), "Trust certs signed only by this CA")
	f.StringVar(&o.cert, "tlscert", filepath.Join(dir, "cert.pem"), "Path to TLS certificate file")
	f.StringVar(&o.key, "tlskey", filepath.Join(dir, "key.pem"), "Path to TLS key file")
	f.BoolVar(&o.tlsVerify, "tlsverify", a.cli.getenv("DOCKER_TLS_VERIFY") != "", "Use TLS and verify the remote")
	f.BoolVarP(&showVersion, "version", "v", false, "Print version information and quit")
	root.PersistentFlags().BoolP("help", "h", false, "Print usage")
	_ = root.PersistentFlags().MarkShorthandDeprecated("help", "use --help")
	root.PersistentFlags().Lookup("help").Hidden = true

	root.SetHelpCommand(&cobra.Command{Use: "help [COMMAND]", Hidden: true, Short: "Help about the command", RunE: a.help})
	root.SetHelpFunc(func(c *cobra.Command, _ []string) { fmt.Fprint(a.cli.Out, a.helpText(c)) })
	root.SetUsageFunc(func(c *cobra.Command) error { fmt.Fprint(a.cli.Err, a.helpText(c)); return nil })
	root.SetFlagErrorFunc(flagError)
	// Flags are read before the command runs, so what they point to is settled here.
	cobra.EnableCommandSorting = true
	root.PersistentPreRunE = wrapPre(root.PersistentPreRunE, func() {
		o.hosts = hosts.values
		o.tlsSet = f.Changed("tls") || f.Changed("tlsverify")
		for flag, p := range map[string]*string{"tlscacert": &o.ca, "tlscert": &o.cert, "tlskey": &o.key, "config": &o.configDir} {
			if !f.Changed(flag) {
				*p = ""
			}
		}
		a.cli.config = nil
	})
	if a.add(root, first(root, words)) {
		return root
	}
	a.add(root, "")
	root.AddCommand(a.completion(root))
	return root
}

// add adds the top-level command or group of this name, or all when name is
// empty, and reports whether there was one.
func (a *app) add(root *cobra.Command, name string) bool {
	found := false
	take := func(use, aliases string) bool {
		own, _, _ := strings.Cut(use, " ")
		ok := name == "" || name == own || slices.Contains(strings.Fields(aliases), name)
		found = found || ok
		return ok
	}
	for _, g := range groups() {
		for _, e := range g.entries {
			if e.top != "" && take(e.top, e.topAlias) {
				root.AddCommand(a.topCommand(g, e))
			}
		}
		if take(g.name, "") {
			root.AddCommand(a.group(g))
		}
	}
	for _, e := range topOnly() {
		if take(e.use, e.alias) {
			root.AddCommand(a.command(e, e.use, e.alias, ""))
		}
	}
	return found
}

func wrapPre(check func(*cobra.Command, []string) error, settle func()) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		settle()
		return check(c, args)
	}
}

func (a *app) help(c *cobra.Command, args []string) error {
	root := c.Root()
	cmd, rest, err := root.Find(args)
	if err != nil || len(rest) > 0 || cmd == nil {
		return fmt.Errorf("unknown help topic: %v", strings.Join(args, " "))
	}
	fmt.Fprint(a.cli.Out, a.helpText(cmd))
	return nil
}

func (a *app) group(g group) *cobra.Command {
	parent := &cobra.Command{
		Use: g.name, Short: g.short, DisableFlagsInUseLine: true, Args: argsRule(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprint(a.cli.Err, a.helpText(c))
			return nil
		},
	}
	for _, e := range g.entries {
		parent.AddCommand(a.command(e, e.use, e.alias, spellings(g, e)))
	}
	return parent
}

// topCommand is the command of a group under its name at the top level.
func (a *app) topCommand(g group, e entry) *cobra.Command {
	name, _, _ := strings.Cut(e.use, " ")
	c := a.command(e, e.top+strings.TrimPrefix(e.use, name), e.topAlias, spellings(g, e))
	if e.common != "" {
		c.Annotations[noteCommon] = e.common
	}
	return c
}

// spellings lists the ways to name an entry of a group, when there are several.
func spellings(g group, e entry) string {
	name, _, _ := strings.Cut(e.use, " ")
	paths := []string{program + " " + g.name + " " + name}
	for _, al := range strings.Fields(e.alias) {
		paths = append(paths, program+" "+g.name+" "+al)
	}
	if e.top != "" {
		paths = append(paths, program+" "+e.top)
	}
	if len(paths) == 1 {
		return ""
	}
	return strings.Join(paths, ", ")
}

// command makes a command which is built when it is named.
func (a *app) command(e entry, use, aliases, note string) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: e.short, Args: argsRule(e.lo, e.hi), DisableFlagsInUseLine: true,
		Annotations: map[string]string{}, Aliases: strings.Fields(aliases),
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	c.Hidden = e.hidden
	if note != "" {
		c.Annotations[noteAliases] = note
	}
	if e.common != "" && e.top == "" {
		c.Annotations[noteCommon] = e.common
	}
	c.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	a.lazy[c] = e.build
	return c
}

func (a *app) completion(root *cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: "completion", Short: "Generate the autocompletion script for the specified shell", Hidden: true,
		Long: "Generate the autocompletion script for " + program + " for the specified shell.\nSee each sub-command's help for details on how to use the generated script.",
		Args: argsRule(0, 0), RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprint(a.cli.Out, a.helpText(c))
			return nil
		},
	}
	var plain bool
	for _, shell := range []string{"bash", "fish", "powershell", "zsh"} {
		use := shell + " [flags]"
		if shell == "bash" {
			use = shell
		}
		s := &cobra.Command{
			Use: use, Short: "Generate the autocompletion script for " + shell, DisableFlagsInUseLine: true,
			Long: completionLong(shell), Args: argsRule(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
			RunE: func(c *cobra.Command, _ []string) error {
				switch shell {
				case "bash":
					return root.GenBashCompletionV2(os.Stdout, !plain)
				case "fish":
					return root.GenFishCompletion(os.Stdout, !plain)
				case "zsh":
					if plain {
						return root.GenZshCompletionNoDesc(os.Stdout)
					}
					return root.GenZshCompletion(os.Stdout)
				}
				if plain {
					return root.GenPowerShellCompletion(os.Stdout)
				}
				return root.GenPowerShellCompletionWithDesc(os.Stdout)
			},
		}
		s.Flags().BoolVar(&plain, "no-descriptions", false, "disable completion descriptions")
		c.AddCommand(s)
	}
	return c
}

func completionLong(shell string) string {
	intro := "Generate the autocompletion script for the " + shell + " shell.\n\n"
	next := "\n\nYou will need to start a new shell for this setup to take effect."
	p := program
	switch shell {
	case "bash":
		return intro + "This script depends on the 'bash-completion' package.\nIf it is not installed already, you can install it via your OS's package manager.\n\n" +
			"To load completions in your current shell session:\n\n\tsource <(" + p + " completion bash)\n\nTo load completions for every new session, execute once:\n\n" +
			"#### Linux:\n\n\t" + p + " completion bash > /etc/bash_completion.d/" + p + "\n\n#### macOS:\n\n\t" + p + " completion bash > $(brew --prefix)/etc/bash_completion.d/" + p + next
	case "zsh":
		return intro + "If shell completion is not already enabled in your environment you will need\nto enable it.  You can execute the following once:\n\n" +
			"\techo \"autoload -U compinit; compinit\" >> ~/.zshrc\n\nTo load completions in your current shell session:\n\n\tsource <(" + p + " completion zsh)\n\n" +
			"To load completions for every new session, execute once:\n\n#### Linux:\n\n\t" + p + " completion zsh > \"${fpath[1]}/_" + p + "\"\n\n#### macOS:\n\n\t" +
			p + " completion zsh > $(brew --prefix)/share/zsh/site-functions/_" + p + next
	case "fish":
		return intro + "To load completions in your current shell session:\n\n\t" + p + " completion fish | source\n\nTo load completions for every new session, execute once:\n\n\t" +
			p + " completion fish > ~/.config/fish/completions/" + p + ".fish" + next
	}
	return "Generate the autocompletion script for powershell.\n\nTo load completions in your current shell session:\n\n\t" + p +
		" completion powershell | Out-String | Invoke-Expression\n\nTo load completions for every new session, add the output of the above command\nto your powershell profile."
}
