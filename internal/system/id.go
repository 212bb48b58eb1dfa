package system

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"berth.dev/berth/internal/atomicfile"
)

// EngineID returns the engine's id, a UUID that is made once for each data root.
func EngineID(root string) (string, error) {
	path := filepath.Join(root, "engine-id")
	b, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(b)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !os.IsNotExist(err) {
		return "", err
	}
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	id := fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:])
	return id, atomicfile.WriteNoSync(path, []byte(id), 0o600, false)
}
