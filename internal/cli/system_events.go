package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

const rfc3339NanoFixed = "2006-01-02T15:04:05.000000000Z07:00"

func eventsCmd(cli *CLI, c *cobra.Command) {
	var since, until, format string
	var filters filterValue
	f := c.Flags()
	f.StringVar(&since, "since", "", "Show all events created since timestamp")
	f.StringVar(&until, "until", "", "Stream events until this timestamp")
	f.VarP(&filters, "filter", "f", "Filter output based on conditions provided")
	f.StringVar(&format, "format", "", inspectFormatHelp)
	c.RunE = func(c *cobra.Command, _ []string) error {
		q := url.Values{}
		for k, v := range map[string]string{"since": since, "until": until} {
			t, err := timestamp(v)
			if err != nil {
				return err
			}
			if t != "" {
				q.Set(k, t)
			}
		}
		filters.query(q)
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		show := printEvent
		if format != "" {
			t, err := parseTemplate(format)
			if err != nil {
				var st StatusError
				if errors.As(err, &st) {
					st.Status, st.Code = "Error parsing format: "+strings.TrimPrefix(st.Status, "template parsing error: "), 64
					return st
				}
				return err
			}
			show = func(w io.Writer, m events.Message) error {
				if err := t.Execute(w, eventRow{m}); err != nil {
					return err
				}
				_, err := io.WriteString(w, "\n")
				return err
			}
		}
		res, err := cl.Do(c.Context(), client.Request{Method: http.MethodGet, Path: "/events", Query: q})
		if err != nil {
			return err
		}
		defer res.Body.Close()
		dec := json.NewDecoder(res.Body)
		for {
			var m events.Message
			if err := dec.Decode(&m); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			if err := show(cli.Out, m); err != nil {
				return err
			}
		}
	}
}

// eventRow is a message whose JSON and fields also have the names of old engines.
type eventRow struct{ events.Message }

// Status is the action, as engines before 1.22 named it.
func (e eventRow) Status() string {
	if !e.old() {
		return ""
	}
	return string(e.Action)
}

func (e eventRow) old() bool {
	return e.Type == events.ContainerEventType || e.Type == events.ImageEventType
}

// ID is the actor's id.
func (e eventRow) ID() string {
	if !e.old() {
		return ""
	}
	return e.Actor.ID
}

// From is the image of a container's event.
func (e eventRow) From() string {
	if e.Type != events.ContainerEventType {
		return ""
	}
	return e.Actor.Attributes["image"]
}

// MarshalJSON adds the old names for containers and images.
func (e eventRow) MarshalJSON() ([]byte, error) {
	var old struct {
		Status string `json:"status,omitempty"`
		ID     string `json:"id,omitempty"`
		From   string `json:"from,omitempty"`
		events.Message
	}
	old.Message = e.Message
	if e.old() {
		old.Status, old.ID = string(e.Action), e.Actor.ID
		if e.Type == events.ContainerEventType {
			old.From = e.Actor.Attributes["image"]
		}
	}
	return json.Marshal(old)
}

func printEvent(w io.Writer, m events.Message) error {
	var b strings.Builder
	switch {
	case m.TimeNano != 0:
		b.WriteString(time.Unix(0, m.TimeNano).Format(rfc3339NanoFixed) + " ")
	case m.Time != 0:
		b.WriteString(time.Unix(m.Time, 0).Format(rfc3339NanoFixed) + " ")
	}
	fmt.Fprintf(&b, "%s %s %s", m.Type, m.Action, m.Actor.ID)
	if len(m.Actor.Attributes) > 0 {
		var attrs []string
		for _, k := range sortedKeys(m.Actor.Attributes) {
			attrs = append(attrs, k+"="+m.Actor.Attributes[k])
		}
		fmt.Fprintf(&b, " (%s)", joinComma(attrs))
	}
	b.WriteByte('\n')
	_, err := io.WriteString(w, b.String())
	return err
}

func dialStdioCmd(cli *CLI, c *cobra.Command) {
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		conn, err := cl.Connect(c.Context())
		if err != nil {
			return fmt.Errorf("failed to open the raw stream connection: %w", err)
		}
		defer conn.Close()
		done := make(chan error, 2)
		go func() {
			_, err := io.Copy(conn, cli.In)
			if cw, ok := conn.(interface{ CloseWrite() error }); ok {
				_ = cw.CloseWrite()
			}
			if err != nil {
				done <- err
			}
		}()
		go func() {
			_, err := io.Copy(cli.Out, conn)
			done <- err
		}()
		return <-done
	}
}
