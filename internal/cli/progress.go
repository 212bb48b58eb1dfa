package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/jsonstream"

	"berth.dev/berth/internal/client"
)

// progress shows a stream of messages: one line for each id, redrawn in place
// on a terminal; elsewhere only the lines that mark a step.
type progress struct {
	out   *Out
	lines map[string]int
}

func newProgress(out *Out) *progress { return &progress{out: out, lines: map[string]int{}} }

func (p *progress) show(r io.Reader, aux func(json.RawMessage)) error {
	tty := p.out.IsTerminal()
	return client.Messages(r, func(m jsonstream.Message) error {
		if m.Aux != nil {
			if aux != nil {
				aux(*m.Aux)
			}
			return nil
		}
		bar := m.Progress != nil && (m.Progress.Current > 0 || m.Progress.Total > 0)
		switch {
		case m.Stream != "":
			_, err := io.WriteString(p.out, m.Stream)
			return err
		case tty && m.ID != "" && (m.Progress != nil || p.known(m.ID)):
			p.redraw(m)
			return nil
		case bar:
			return nil // numbers are for terminals
		}
		text := m.Status
		if m.ID != "" {
			text = m.ID + ": " + text
		}
		if tty && m.ID != "" {
			p.redraw(m)
			return nil
		}
		_, err := fmt.Fprintln(p.out, text)
		if m.ID == "" {
			clear(p.lines)
		}
		return err
	})
}

func (p *progress) known(id string) bool { _, ok := p.lines[id]; return ok }

func (p *progress) redraw(m jsonstream.Message) {
	at, ok := p.lines[m.ID]
	up := 0
	if ok {
		up = len(p.lines) - at
	} else {
		p.lines[m.ID] = len(p.lines)
		fmt.Fprintln(p.out)
		up = 1
	}
	_, width := p.out.Size()
	text := m.ID + ": " + m.Status
	if b := progressBar(m.Progress, int(width)); b != "" {
		text += " " + b
	}
	fmt.Fprintf(p.out, "\x1b[%dA\x1b[2K\r%s\r\x1b[%dB", up, text, up)
}

func progressBar(p *jsonstream.Progress, width int) string {
	if p == nil || p.Current <= 0 && p.Total <= 0 {
		return ""
	}
	var numbers, left string
	if p.Total <= 0 {
		if p.Units == "" {
			return fmt.Sprintf("%8v", units.HumanSize(float64(p.Current)))
		}
		return fmt.Sprintf("%d %s", p.Current, p.Units)
	}
	percent := min(int(float64(p.Current)/float64(p.Total)*100)/2, 50)
	bar := ""
	if width > 110 {
		bar = "[" + strings.Repeat("=", percent) + ">" + strings.Repeat(" ", max(0, 50-percent)) + "] "
	}
	switch {
	case p.HideCounts:
	case p.Units == "":
		cur, total := units.HumanSize(float64(p.Current)), units.HumanSize(float64(p.Total))
		numbers = fmt.Sprintf("%8v/%v", cur, total)
		if p.Current > p.Total {
			numbers = fmt.Sprintf("%8v", cur)
		}
	default:
		numbers = fmt.Sprintf("%d/%d %s", p.Current, p.Total, p.Units)
	}
	if p.Current > 0 && p.Start > 0 && percent < 50 {
		elapsed := time.Since(time.Unix(p.Start, 0))
		left = " " + (elapsed / time.Duration(p.Current) * time.Duration(p.Total-p.Current)).Round(time.Second).String()
	}
	return bar + numbers + left
}
