package logs_test

import (
	"testing"

	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/logstest"
)

func TestConformance(t *testing.T) {
	for _, tc := range []struct {
		name, driver string
		opts         logs.Options
		parts, text  bool
	}{
		{"json-file", logs.DriverJSONFile, logs.Options{}, false, true},
		{"json-file/rotated", logs.DriverJSONFile, logs.Options{MaxSize: 500, MaxFile: 900}, false, true},
		{"json-file/non-blocking", logs.DriverJSONFile, logs.Options{NonBlocking: true}, false, true},
		{"local", logs.DriverLocal, logs.Options{Compress: true}, true, false},
		{"local/rotated", logs.DriverLocal, logs.Options{MaxSize: 300, MaxFile: 900, Compress: true}, true, false},
		{"local/non-blocking", logs.DriverLocal, logs.Options{NonBlocking: true, Buffer: 100 << 10}, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			logstest.Run(t, logstest.Driver{New: logstest.FileLog(tc.driver, tc.opts), Parts: tc.parts, Text: tc.text})
		})
	}
}
