package logs

import (
	"math"
	"sort"
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
	MaxSize  int64             `json:"maxSize,omitempty"`  // bytes at which the file is rotated; 0 = DefaultMaxSize, -1 = never
	MaxFile  int               `json:"maxFile,omitempty"`  // files kept, the current one included; 0 = DefaultMaxFile
	Compress bool              `json:"compress,omitempty"` // gzip rotated files
	Attrs    map[string]string `json:"attrs,omitempty"`    // written with each entry
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

// ValidateDriver fails, in Docker's words, for a driver that does not exist or
// an option that it does not know.
func ValidateDriver(driver string, opts map[string]string) error {
	switch driver {
	case DriverJSONFile, "":
		_, err := ParseOptions(opts)
		return err
	case DriverNone:
		return nil
	}
	return errs.New(errs.Invalid, "logger: no log driver named '%s' is registered", driver)
}

// ParseOptions reads the options of the json-file driver. Those that select
// attributes (labels, labels-regex, env, env-regex, tag) are known but are the
// caller's to resolve into Attrs. mode and max-buffer-size are accepted: the
// writer never blocks a container for long and keeps no queue.
func ParseOptions(opts map[string]string) (Options, error) {
	var o Options
	keys := make([]string, 0, len(opts))
	for k := range opts {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		v := opts[k]
		switch k {
		case "max-size":
			n, err := parseSize(v)
			if err != nil {
				return o, errs.New(errs.Invalid, "invalid value for max-size: %v", err)
			}
			if n <= 0 && n != -1 {
				return o, errs.New(errs.Invalid, "max-size must be a positive number")
			}
			o.MaxSize = n
		case "max-file":
			n, err := strconv.Atoi(v)
			if err != nil {
				return o, errs.New(errs.Invalid, "invalid value for max-file: %v", err)
			}
			if n < 1 {
				return o, errs.New(errs.Invalid, "max-file cannot be less than 1")
			}
			o.MaxFile = n
		case "compress":
			b, err := strconv.ParseBool(v)
			if err != nil {
				return o, errs.New(errs.Invalid, "invalid value for compress: %v", err)
			}
			o.Compress = b
		case "mode":
			if v != "" && v != "blocking" && v != "non-blocking" {
				return o, errs.New(errs.Invalid, "logger: logging mode not supported: %s", v)
			}
		case "max-buffer-size":
			if _, err := parseSize(v); err != nil {
				return o, errs.New(errs.Invalid, "error parsing option max-buffer-size: %v", err)
			}
			if opts["mode"] != "non-blocking" {
				return o, errs.New(errs.Invalid, "logger: max-buffer-size option is only supported with 'mode=non-blocking'")
			}
		case "labels", "labels-regex", "env", "env-regex", "tag":
		default:
			return o, errs.New(errs.Invalid, "unknown log opt '%s' for json-file log driver", k)
		}
	}
	if o.Compress && (o.MaxFile == 1 || o.MaxSize == -1) {
		return o, errs.New(errs.Invalid, "compress cannot be true when max-file is less than 2 or max-size is not set")
	}
	return o, nil
}

// parseSize reads "20m", "1.5g", "100kb" or a plain number of bytes; the units
// are decimal, as for Docker's max-size.
func parseSize(s string) (int64, error) {
	if s == "-1" {
		return -1, nil
	}
	num := strings.TrimRight(s, "bBkKmMgGtTpP ")
	unit := strings.ToLower(strings.TrimSpace(s[len(num):]))
	f, err := strconv.ParseFloat(num, 64)
	if err != nil || f < 0 {
		return 0, errs.New(errs.Invalid, "invalid size: '%s'", s)
	}
	exp := 0
	switch strings.TrimSuffix(unit, "b") {
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
		return 0, errs.New(errs.Invalid, "invalid suffix: '%s'", unit)
	}
	f *= math.Pow(1000, float64(exp))
	if f > math.MaxInt64/2 {
		return 0, errs.New(errs.Invalid, "invalid size: '%s'", s)
	}
	return int64(f), nil
}
