package cli

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Annotations of commands.
const (
	noteAliases = "aliases"  // the text of the Aliases section
	noteCommon  = "category" // its rank among the common commands of the top page
)

// helpText returns the help page of a command.
func (a *app) helpText(c *cobra.Command) string {
	var b strings.Builder
	b.WriteString(usageLine(c) + "\n\n")
	text := c.Long
	if text == "" {
		text = c.Short
	}
	b.WriteString(strings.TrimSpace(text) + "\n")
	a.sections(&b, c)
	return b.String()
}

func usageLine(c *cobra.Command) string {
	switch {
	case !c.HasParent():
		return "Usage:  " + c.Name() + " [OPTIONS] COMMAND"
	case c.HasSubCommands():
		return "Usage:  " + c.CommandPath() + " COMMAND"
	}
	return "Usage:  " + c.UseLine()
}

func (a *app) sections(b *strings.Builder, c *cobra.Command) {
	if s := c.Annotations[noteAliases]; s != "" {
		fmt.Fprintf(b, "\nAliases:\n  %s\n", s)
	}
	if c.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n%s\n", c.Example)
	}
	root := !c.HasParent()
	if !root {
		a.options(b, c, "Options:")
	}
	var common, management, rest []*cobra.Command
	for _, s := range c.Commands() {
		switch {
		case s.Hidden || s.Deprecated != "":
		case s.Annotations[noteCommon] != "":
			common = append(common, s)
		case s.HasSubCommands() && root:
			management = append(management, s)
		default:
			rest = append(rest, s)
		}
	}
	sort.SliceStable(common, func(i, j int) bool { return common[i].Annotations[noteCommon] < common[j].Annotations[noteCommon] })
	for _, g := range []struct {
		title string
		list  []*cobra.Command
	}{{"Common Commands:", common}, {"Management Commands:", management}, {"Commands:", rest}} {
		if len(g.list) == 0 {
			continue
		}
		b.WriteString("\n" + g.title + "\n")
		for _, s := range g.list {
			fmt.Fprintf(b, "  %-*s %s\n", c.Commands()[0].NamePadding(), s.Name(), s.Short)
		}
	}
	if root {
		a.options(b, c, "Global Options:")
	}
	if c.HasSubCommands() {
		fmt.Fprintf(b, "\nRun '%s COMMAND --help' for more information on a command.\n", c.CommandPath())
	}
}

func (a *app) options(b *strings.Builder, c *cobra.Command, title string) {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	fs.AddFlagSet(c.NonInheritedFlags())
	if !fs.HasAvailableFlags() {
		return
	}
	width := 80
	if _, w := a.cli.Out.Size(); w > 0 {
		width = int(w)
	}
	fmt.Fprintf(b, "\n%s\n%s\n", title, strings.TrimRight(fs.FlagUsagesWrapped(width-1), " \n\t"))
}

// flagError is what a wrong flag gives.
func flagError(c *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	line := c.UseLine()
	if !c.HasParent() {
		line = c.Name() + " [OPTIONS] COMMAND [ARG...]"
	}
	return StatusError{Status: fmt.Sprintf("%s\n\nUsage:  %s\n\nRun '%s --help' for more information", err, line, c.CommandPath()), Code: 125}
}

// argsRule returns the check of the number of arguments; hi < 0 is no limit.
func argsRule(lo, hi int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		n, see := len(args), "Run"
		var what string
		switch {
		case n >= lo && (hi < 0 || n <= hi):
			return nil
		case lo == 0 && hi == 0:
			if c.HasSubCommands() {
				return unknownCommand(c, args[0])
			}
			what = "accepts no arguments"
		case lo == hi:
			what = "requires " + arguments(lo)
		case hi < 0:
			what, see = "requires at least "+arguments(lo), "See"
		case lo == 0:
			what = "requires at most " + arguments(hi)
		default:
			what = fmt.Sprintf("requires at least %d and at most %s", lo, arguments(hi))
		}
		return fmt.Errorf("%s: '%s' %s\n\nUsage:  %s\n\n%s '%s --help' for more information",
			program, c.CommandPath(), what, c.UseLine(), see, c.CommandPath())
	}
}

func unknownCommand(c *cobra.Command, name string) error {
	usage := ""
	if c.HasParent() {
		usage = "\n\nUsage:  " + c.CommandPath()
	}
	return fmt.Errorf("%s: unknown command: %s %s%s\n\nRun '%s --help' for more information", program, c.CommandPath(), name, usage, c.CommandPath())
}

func arguments(n int) string {
	if n == 1 {
		return "1 argument"
	}
	return strconv.Itoa(n) + " arguments"
}
