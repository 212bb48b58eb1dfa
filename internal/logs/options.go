package logs

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"berth.dev/berth/internal/errs"
)

// The defaults bound a container's log at 100 MiB.
const (
	DefaultMaxSize = 20 << 20
	DefaultMaxFile = 5
)

// Options is how a log file is kept. The zero value is the default.
type Options struct {
	MaxSize     int64             `json:"maxSize,omitempty"`     // bytes at which the file is rotated; 0 = DefaultMaxSize, -1 = never
	MaxFile     int               `json:"maxFile,omitempty"`     // files kept, the current one included; 0 = DefaultMaxFile
	Compress    bool              `json:"compress,omitempty"`    // gzip rotated files
	Attrs       map[string]string `json:"attrs,omitempty"`       // written with each entry
	NonBlocking bool              `json:"nonBlocking,omitempty"` // never wait for the file: drop the oldest lines
	Buffer      int64             `json:"buffer,omitempty"`      // bytes kept for that; 0 = DefaultBuffer
}

func (o Options) withDefaults() Options {
	if o.MaxSize == 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.MaxFile <= 0 {
		o.MaxFile = DefaultMaxFile
	}
	return o
}

// Attributes are the options that select what is told of a container with each
// entry; every driver has them.
var Attributes = []string{"labels", "labels-regex", "env", "env-regex", "tag"}

// cachePrefix begins the options of the local copy that the drivers without
// files keep.
const cachePrefix = "cache-"

// SpoolOption tells whether k is an option of the local copy, and which one of
// the driver local it stands for.
func SpoolOption(k string) (string, bool) { return strings.CutPrefix(k, cachePrefix) }

// Common splits off the options that are every driver's, and checks them: the
// mode, and the local copy's.
func Common(opts map[string]string) (own map[string]string, err error) {
	switch m := opts["mode"]; m {
	case "", "blocking", "non-blocking":
	default:
		return nil, errs.New(errs.Invalid, "logger: logging mode not supported: %s", m)
	}
	if v, ok := opts["max-buffer-size"]; ok {
		if opts["mode"] != "non-blocking" {
			return nil, errs.New(errs.Invalid, "logger: max-buffer-size option is only supported with 'mode=non-blocking'")
		}
		if _, err := ParseRAM(v); err != nil {
			return nil, errs.New(errs.Invalid, "error parsing option max-buffer-size: %v", err)
		}
	}
	if v := opts["cache-disabled"]; v != "" {
		if _, err := strconv.ParseBool(v); err != nil {
			return nil, errs.New(errs.Invalid, "invalid value for option cache-disabled: %s", v)
		}
	}
	own = map[string]string{}
	for k, v := range opts {
		switch k {
		case "mode", "max-buffer-size", "cache-disabled", "cache-max-size", "cache-max-file", "cache-compress":
		default:
			own[k] = v
		}
	}
	return own, nil
}

// Known fails, in Docker's words, for an option that is neither in known nor
// an attribute.
func Known(driver string, own map[string]string, known ...string) error {
	for _, k := range slices.Sorted(maps.Keys(own)) {
		if slices.Contains(known, k) || slices.Contains(Attributes, k) {
			continue
		}
		switch driver {
		case DriverLocal:
			return errs.New(errs.Invalid, "unknown log opt '%s' for log driver local", k)
		case "gelf":
			return errs.New(errs.Invalid, "unknown log opt %q for gelf log driver", k)
		}
		return errs.New(errs.Invalid, "unknown log opt '%s' for %s log driver", k, driver)
	}
	return nil
}

// ValidateDriver fails, in Docker's words, for a driver that keeps no files or
// an option that it does not know. Values are looked at by ParseOptions.
func ValidateDriver(driver string, opts map[string]string) error {
	if driver == DriverNone {
		return nil
	}
	own, err := Common(opts)
	if err != nil {
		return err
	}
	switch driver {
	case "":
		driver = DriverJSONFile
	case DriverJSONFile, DriverLocal:
	default:
		return unknownDriver(driver)
	}
	return Known(driver, own, "max-size", "max-file", "compress")
}

// ParseOptions reads the options of a driver that keeps files. Those that
// select attributes are the caller's to resolve into Attrs.
func ParseOptions(driver string, opts map[string]string) (Options, error) {
	if err := ValidateDriver(driver, opts); err != nil {
		return Options{}, err
	}
	var o Options
	var err error
	if driver == DriverLocal {
		err = o.parseLocal(opts, "")
	} else {
		err = o.parseJSONFile(opts)
	}
	o.mode(opts)
	return o, err
}

// ParseSpool reads the options of the local copy that a driver without files
// keeps: those of the driver local, behind "cache-".
func ParseSpool(opts map[string]string) (o Options, err error) {
	if _, err = Common(opts); err != nil {
		return o, err
	}
	err = o.parseLocal(opts, cachePrefix)
	o.mode(opts)
	return o, err
}

func (o *Options) mode(opts map[string]string) {
	o.NonBlocking = opts["mode"] == "non-blocking"
	if o.NonBlocking {
		o.Buffer, _ = ParseRAM(opts["max-buffer-size"]) // checked before
	}
}

func (o *Options) parseJSONFile(opts map[string]string) (err error) {
	if v, ok := opts["max-size"]; ok {
		if o.MaxSize, err = parseSize(v); err != nil {
			return err
		}
		if o.MaxSize <= 0 && o.MaxSize != -1 {
			return errs.New(errs.Invalid, "max-size must be a positive number")
		}
	}
	if v, ok := opts["max-file"]; ok {
		if o.MaxFile, err = strconv.Atoi(v); err != nil {
			return errs.New(errs.Invalid, "%v", err)
		}
		if o.MaxFile < 1 {
			return errs.New(errs.Invalid, "max-file cannot be less than 1")
		}
	}
	if v, ok := opts["compress"]; ok {
		if o.Compress, err = strconv.ParseBool(v); err != nil {
			return errs.New(errs.Invalid, "%v", err)
		}
	}
	if o.Compress && (o.MaxFile == 1 || o.MaxSize == -1) {
		return errs.New(errs.Invalid, "compress cannot be true when max-file is less than 2 or max-size is not set")
	}
	return nil
}

func (o *Options) parseLocal(opts map[string]string, prefix string) (err error) {
	o.Compress = true
	if v, ok := opts[prefix+"max-size"]; ok {
		if o.MaxSize, err = parseSize(v); err != nil {
			return errs.New(errs.Invalid, "invalid value for max-size: %s: %v", v, err)
		}
		if o.MaxSize < 0 {
			return errs.New(errs.Invalid, "max-size must not be negative")
		}
	}
	if v, ok := opts[prefix+"max-file"]; ok {
		if o.MaxFile, err = strconv.Atoi(v); err != nil {
			return errs.New(errs.Invalid, "invalid value for max-file: %s: %v", v, err)
		}
		if o.MaxFile < 0 {
			return errs.New(errs.Invalid, "max-file must not be negative")
		}
		o.MaxFile = max(o.MaxFile, 1)
	}
	if v, ok := opts[prefix+"compress"]; ok {
		if o.Compress, err = strconv.ParseBool(v); err != nil {
			return errs.New(errs.Invalid, "invalid boolean value for compress: %v", err)
		}
	}
	if o.Compress && o.MaxFile == 1 {
		return errs.New(errs.Invalid, "compression cannot be enabled when max file count is 1")
	}
	return nil
}

// parseSize reads "20m", "1.5g", "100kb" or a plain number of bytes; the units
// are decimal, as for Docker's max-size.
func parseSize(s string) (int64, error) {
	if s == "-1" {
		return -1, nil
	}
	return parseUnits(s, 1000)
}

// ParseRAM reads a size as Docker reads amounts of memory: units are binary.
// An empty one is 0.
func ParseRAM(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	return parseUnits(s, 1024)
}

func parseUnits(s string, unit float64) (int64, error) {
	num := strings.TrimRight(s, "bBkKmMgGtTpPi ")
	suffix := strings.ToLower(strings.TrimSpace(s[len(num):]))
	f, err := strconv.ParseFloat(num, 64)
	if err != nil || f < 0 {
		return 0, errs.New(errs.Invalid, "invalid size: '%s'", s)
	}
	exp := 0
	switch strings.TrimSuffix(strings.TrimSuffix(suffix, "b"), "i") {
	case "":
	case "k":
		exp = 1
	case "m":
		exp = 2
	case "g":
		exp = 3
	case "t":
		exp = 4
	case "p":
		exp = 5
	default:
		return 0, errs.New(errs.Invalid, "invalid suffix: '%s'", suffix)
	}
	f *= math.Pow(unit, float64(exp))
	if f > math.MaxInt64/2 {
		return 0, errs.New(errs.Invalid, "invalid size: '%s'", s)
	}
	return int64(f), nil
}
