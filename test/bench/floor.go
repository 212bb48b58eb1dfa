package main

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

//go:embed testdata/floor.c
var floorSource []byte

// floor is the running floor program.
type floor struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startFloor compiles the floor and starts it. rootfs holds /bin/busybox and
// /proc; groups are cgroup directories of its own, "1:" or "2:" before each.
func startFloor(dir, rootfs string, groups []string) (*floor, error) {
	cc, err := exec.LookPath("gcc")
	if err != nil {
		if cc, err = exec.LookPath("cc"); err != nil {
			return nil, errors.New("no C compiler: install gcc")
		}
	}
	source, bin, scratch := filepath.Join(dir, "floor.c"), filepath.Join(dir, "floor"), filepath.Join(dir, "floor.d")
	if err := os.WriteFile(source, floorSource, 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.Command(cc, "-O2", "-static", "-o", bin, source).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cannot compile: %w: %s", err, out)
	}
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return nil, err
	}
	f := &floor{cmd: exec.Command(bin, append([]string{scratch, rootfs}, groups...)...)}
	f.cmd.Stderr = os.Stderr
	if f.in, err = f.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	f.out = bufio.NewReader(out)
	return f, f.cmd.Start()
}

// cycle makes one container's worth of system calls; it times itself.
func (f *floor) cycle(command string) (time.Duration, error) {
	if _, err := io.WriteString(f.in, command+"\n"); err != nil {
		return 0, err
	}
	line, err := f.out.ReadString('\n')
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err == nil && n < 0 {
		err = errors.New("the floor's cycle failed")
	}
	return time.Duration(n), err
}

func (f *floor) stop() {
	_ = f.in.Close()
	_ = f.cmd.Wait()
}
