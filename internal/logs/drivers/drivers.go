// Package drivers is the list of log drivers: those that keep files (package
// logs) and those that send to a remote (package ship and below).
//
//	err := drivers.Validate("syslog", opts)   // at create
//	o, err := drivers.Open(info)              // at start
package drivers

import (
	"time"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/ship"
	"berth.dev/berth/internal/logs/ship/fluentd"
	"berth.dev/berth/internal/logs/ship/gelf"
	"berth.dev/berth/internal/logs/ship/journald"
	"berth.dev/berth/internal/logs/ship/syslog"
)

// Names are the drivers as /info lists them.
func Names() []string {
	return []string{fluentd.Name, gelf.Name, journald.Name, logs.DriverJSONFile, logs.DriverLocal, syslog.Name}
}

// remote is a driver without files.
type remote struct {
	validate func(own map[string]string) error
	open     func(*ship.Info) (ship.Remote, error)
	wait     func(own map[string]string) (time.Duration, int)
	lazy     func(own map[string]string) bool // a start does not connect
}

func remoteOf(name string) (remote, bool) {
	switch name {
	case syslog.Name:
		return remote{validate: syslog.Validate, open: syslog.Open}, true
	case gelf.Name:
		return remote{validate: gelf.Validate, open: gelf.Open, wait: gelf.Wait}, true
	case fluentd.Name:
		return remote{validate: fluentd.Validate, open: fluentd.Open, wait: fluentd.Wait, lazy: fluentd.Async}, true
	case journald.Name:
		return remote{validate: journald.Validate, open: journald.Open}, true
	}
	return remote{}, false
}

// IsRemote reports whether a driver sends to a remote, from a spool.
func IsRemote(name string) bool {
	_, ok := remoteOf(name)
	return ok
}

// Validate fails, in Docker's words, for a driver that does not exist, an option
// that it does not know, and what else Docker looks at before a start.
func Validate(name string, opts map[string]string) error {
	if name == logs.DriverJSONFile && len(opts) == 0 {
		return nil
	}
	r, ok := remoteOf(name)
	if !ok {
		return logs.ValidateDriver(name, opts)
	}
	own, err := logs.Common(opts)
	if err != nil {
		return err
	}
	return errs.Wrap(errs.Invalid, r.validate(own), "")
}

// Check is Validate, and looks at the values that Docker leaves to the start:
// for the engine's own defaults.
func Check(name string, opts map[string]string) error {
	err := Validate(name, opts)
	switch {
	case err != nil || name == logs.DriverNone:
	case IsRemote(name):
		_, err = logs.ParseSpool(opts)
	default:
		_, err = logs.ParseOptions(name, opts)
	}
	return err
}

// Open begins an order for a container's log. It fails when the options do not
// hold or, unless later is set, when the remote cannot be reached.
func Open(name string, info *ship.Info, later bool) (ship.Order, error) {
	r, ok := remoteOf(name)
	if !ok {
		return ship.Order{}, errs.New(errs.Invalid, "logger: no log driver named '%s' is registered", name)
	}
	o := ship.Order{ID: info.ContainerID, Open: func() (ship.Remote, error) { return r.open(info) }}
	if r.wait != nil {
		o.Wait, o.Retries = r.wait(info.Config)
	}
	if later {
		return o, nil
	}
	if r.lazy != nil && r.lazy(info.Config) {
		_, err := info.Tag(ship.DefaultTag)
		return o, err
	}
	var err error
	o.Remote, err = o.Open()
	return o, err
}

// FinishBefore is how long the removal of a container waits for its log to be sent.
const FinishBefore = 5 * time.Second
