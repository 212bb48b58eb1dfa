package image

import (
	"embed"
	"io"
)

// starter holds archives of the images that come with the engine. They are made by
// mkstarter; a clone without them builds and has no built-in images.
//
//go:embed all:starter
var starter embed.FS

// Starter returns the images that come with the engine, by name, for
// Options.Builtin.
func Starter() map[string]func() (io.ReadCloser, error) {
	const name, file = "hello", "starter/hello.tar.gz"
	f, err := starter.Open(file)
	if err != nil {
		return nil
	}
	_ = f.Close()
	return map[string]func() (io.ReadCloser, error){name: func() (io.ReadCloser, error) { return starter.Open(file) }}
}
