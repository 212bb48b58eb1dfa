package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"berth.dev/berth/internal/idmap"
)

// remap finds the ids that --userns-remap gives to containers; nil for the
// host's own. The errors are dockerd's.
func remap(spec string, files idmap.Files) (*idmap.Mapping, error) {
	if spec == "" {
		return nil, nil
	}
	user, group, err := files.Resolve(spec)
	if errors.Is(err, idmap.ErrNoDefault) {
		if err := makeDefaultUser(files); err != nil {
			return nil, fmt.Errorf("Error during %q user creation: %w", idmap.DefaultUser, err) //nolint:staticcheck // dockerd's words
		}
		user, group, err = idmap.DefaultUser, idmap.DefaultUser, nil
	}
	if err != nil {
		return nil, err
	}
	if user == "root" {
		slog.Warn("User namespaces: root cannot be remapped with itself; user namespaces are OFF")
		return nil, nil
	}
	slog.Info("User namespaces: ID ranges will be mapped to subuid/subgid ranges of: " + user)
	m, err := files.Load(user, group)
	if err != nil {
		return nil, fmt.Errorf("Can't create ID mappings: %w", err) //nolint:staticcheck // dockerd's words
	}
	return m, nil
}

// makeDefaultUser makes the user "dockremap" with the machine's own tools, and
// gives it subordinate ids unless the tools did.
func makeDefaultUser(files idmap.Files) error {
	name := idmap.DefaultUser
	var cmd *exec.Cmd
	if p, err := exec.LookPath("useradd"); err == nil {
		cmd = exec.Command(p, "-r", "-s", "/bin/false", "-U", name)
	} else if p, err := exec.LookPath("adduser"); err == nil {
		cmd = exec.Command(p, "--system", "--shell", "/bin/false", "--no-create-home", "--disabled-login", "--disabled-password", "--group", name)
	} else {
		return errors.New("cannot add user; no useradd/adduser binary found")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("failed to add user with error: %w; output: %q", err, out)
	}
	if _, err := files.Load(name, name); err == nil {
		return nil
	}
	first, err := idmap.NextFree(files)
	if err != nil {
		return err
	}
	last := first + idmap.DefaultSize - 1
	for _, flag := range []string{"-v", "-w"} {
		if out, err := exec.Command("usermod", flag, fmt.Sprintf("%d-%d", first, last), name).CombinedOutput(); err != nil {
			return fmt.Errorf("unable to add subordinate ids to user: %q; output: %s, err: %w", name, out, err)
		}
	}
	return nil
}

// setupRoot makes the data root. With a mapping that is a directory below it,
// named by the host's ids of the container's root, who may walk through it and list
// nothing; trees made under another mapping stay apart. Containers get what they need
// as descriptors: the directories above need not be open to them.
func setupRoot(root string, m *idmap.Mapping) (string, error) {
	if err := os.MkdirAll(root, 0o710); err != nil {
		return "", err
	}
	if m == nil {
		return root, nil
	}
	uid, gid := m.Root()
	own := filepath.Join(root, fmt.Sprintf("%d.%d", uid, gid))
	for _, dir := range []string{root, own} {
		if err := os.MkdirAll(dir, 0o710); err != nil {
			return "", fmt.Errorf("Cannot create daemon root: %s: %w", own, err) //nolint:staticcheck // dockerd's words
		}
		if err := os.Chown(dir, os.Getuid(), int(gid)); err != nil {
			return "", err
		}
		if err := os.Chmod(dir, 0o710); err != nil {
			return "", err
		}
	}
	return own, nil
}

// rooted is c with its data root, and with the names of the mapped user and group.
func (c *Config) rooted(dir string, m *idmap.Mapping) *Config {
	own := *c
	own.DataRoot, own.UsernsRemap = dir, ""
	if m != nil {
		own.UsernsRemap = strings.Join([]string{m.User, m.Group}, ":")
	}
	return &own
}
