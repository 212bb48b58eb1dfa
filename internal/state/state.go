// Package state is the engine's durable database: buckets of JSON values kept
// in memory and in one append-only journal on disk.
//
// # Words
//
// A bucket is a name; in it each key has one value. A transaction (Update)
// collects puts and deletes and is applied whole or not at all: in memory by
// one swap, on disk as one checksummed journal record. Reads see memory only
// and wait for no system call.
//
// # Schema
//
//	meta        "version"            → 1
//	container   <container id>       → container.Record
//	status      <container id>       → container.Status
//	name        <container name>     → container id
//	image       <image id>           → image.Record
//	tag         <reference>          → image id
//	layer       <chain id>           → image.Layer
//	volume      <volume name>        → volume.Record
//	ref         <kind>/<object>/<holder> → holder's kind: who uses what
//
// # On disk
//
//	<dir>/journal      "BERTHJ1\n", then records
//	record             length uint32 · crc32c uint32 · JSON array of changes
//
// A torn last record (a crash in the middle of a write) is cut off when the
// file is opened. When most of the journal is history, it is rewritten as one
// snapshot record in a new file that replaces the old one.
//
// # Durability
//
// A transaction survives a kill of the process as soon as Update returns. It
// survives a power cut when made with Sync, some milliseconds later with Soon,
// or at the latest a second later.
// Concurrent Sync transactions share one fdatasync.
package state

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/atomicfile"
)

// Durability says what a transaction must outlive when Update returns.
type Durability uint8

const (
	// Async outlives the process at once, a power cut after a second.
	Async Durability = iota
	// Soon outlives a power cut after some milliseconds.
	Soon
	// Sync outlives a power cut.
	Sync
)

// Version is the schema's version, raised with each migration.
const Version = 1

const (
	magic       = "BERTHJ1\n"
	maxRecord   = 256 << 20
	compactFrom = 4 << 20 // bytes of journal below which it is never rewritten
	soonDelay   = 10 * time.Millisecond
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// change is one put (V set) or delete of a journal record.
type change struct {
	B string          `json:"b"`
	K string          `json:"k"`
	V json.RawMessage `json:"v,omitempty"`
}

// DB is an open database. It is safe for use by several goroutines.
type DB struct {
	dir    string
	unlock func()

	mu      sync.RWMutex                 // guards buckets; held for memory work only
	buckets map[string]map[string][]byte // values are never changed in place

	writer  sync.Mutex // one transaction at a time; taken before mu
	file    *os.File
	size    int64 // journal bytes, including what may not be synced
	live    int64 // bytes that a snapshot would take, roughly
	failed  error // a write failed: the journal can no longer be trusted
	syncing syncState

	soon chan struct{} // a transaction wants to be synced
	stop chan struct{}
	done chan struct{}
}

// syncState lets many committers share one fdatasync.
type syncState struct {
	mu      sync.Mutex
	cond    *sync.Cond
	written int64 // transactions in the page cache
	synced  int64 // transactions known to be on disk
	running bool
}

// Open opens or makes the database in dir, and holds it against other processes.
func Open(dir string) (*DB, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := atomicfile.Lock(filepath.Join(dir, "lock"))
	for wait := time.Millisecond; err != nil && wait < time.Second; wait *= 2 {
		time.Sleep(wait) // an engine that was just killed holds it to its last moment
		unlock, err = atomicfile.Lock(filepath.Join(dir, "lock"))
	}
	if err != nil {
		return nil, fmt.Errorf("another engine uses this data root: %w", err)
	}
	db := &DB{dir: dir, unlock: unlock, buckets: map[string]map[string][]byte{}, soon: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	db.syncing.cond = sync.NewCond(&db.syncing.mu)
	if err := db.load(); err != nil {
		unlock()
		return nil, err
	}
	if err := db.migrate(); err != nil {
		_ = db.file.Close()
		unlock()
		return nil, err
	}
	go db.background()
	return db, nil
}

// Close syncs and closes the database.
func (db *DB) Close() error {
	close(db.stop)
	<-db.done
	db.writer.Lock()
	defer db.writer.Unlock()
	err := unix.Fdatasync(int(db.file.Fd()))
	if cerr := db.file.Close(); err == nil {
		err = cerr
	}
	db.failed = errors.New("the database is closed")
	db.unlock()
	return err
}

// Get decodes the value of key into v and reports whether there is one.
func (db *DB) Get(bucket, key string, v any) (bool, error) {
	db.mu.RLock()
	raw, ok := db.buckets[bucket][key]
	db.mu.RUnlock()
	if !ok {
		return false, nil
	}
	return true, json.Unmarshal(raw, v)
}

// Has reports whether key has a value.
func (db *DB) Has(bucket, key string) bool {
	db.mu.RLock()
	defer db.mu.RUnlock()
	_, ok := db.buckets[bucket][key]
	return ok
}

// Keys returns the keys of a bucket that start with prefix, sorted.
func (db *DB) Keys(bucket, prefix string) []string {
	db.mu.RLock()
	keys := make([]string, 0, len(db.buckets[bucket]))
	for k := range db.buckets[bucket] {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	db.mu.RUnlock()
	slices.Sort(keys)
	return keys
}

// Each calls fn with every key and JSON value of a bucket, in no order, from
// a copy taken at once. fn must not change raw.
func (db *DB) Each(bucket string, fn func(key string, raw []byte) error) error {
	db.mu.RLock()
	snapshot := maps.Clone(db.buckets[bucket])
	db.mu.RUnlock()
	for k, raw := range snapshot {
		if err := fn(k, raw); err != nil {
			return err
		}
	}
	return nil
}

// Tx is a transaction under way. It sees its own changes.
type Tx struct {
	db      *DB
	changes []change
	index   map[[2]string]int
}

// Get is DB.Get, seeing the transaction's own changes.
func (tx *Tx) Get(bucket, key string, v any) (bool, error) {
	if i, ok := tx.index[[2]string{bucket, key}]; ok {
		if tx.changes[i].V == nil {
			return false, nil
		}
		return true, json.Unmarshal(tx.changes[i].V, v)
	}
	return tx.db.Get(bucket, key, v)
}

// Has is DB.Has, seeing the transaction's own changes.
func (tx *Tx) Has(bucket, key string) bool {
	if i, ok := tx.index[[2]string{bucket, key}]; ok {
		return tx.changes[i].V != nil
	}
	return tx.db.Has(bucket, key)
}

// Keys is DB.Keys, seeing the transaction's own changes.
func (tx *Tx) Keys(bucket, prefix string) []string {
	keys := tx.db.Keys(bucket, prefix)
	for _, c := range tx.changes {
		i, found := slices.BinarySearch(keys, c.K)
		switch {
		case c.B != bucket || !strings.HasPrefix(c.K, prefix):
		case c.V == nil && found:
			keys = slices.Delete(keys, i, i+1)
		case c.V != nil && !found:
			keys = slices.Insert(keys, i, c.K)
		}
	}
	return keys
}

// Put sets the value of key to the JSON of v.
func (tx *Tx) Put(bucket, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot encode %s/%s: %w", bucket, key, err)
	}
	tx.set(change{B: bucket, K: key, V: raw})
	return nil
}

// Delete removes key; a missing one is no error.
func (tx *Tx) Delete(bucket, key string) { tx.set(change{B: bucket, K: key}) }

func (tx *Tx) set(c change) {
	at := [2]string{c.B, c.K}
	if i, ok := tx.index[at]; ok {
		tx.changes[i] = c
		return
	}
	tx.index[at] = len(tx.changes)
	tx.changes = append(tx.changes, c)
}

// Update runs fn and applies what it changed, unless fn fails. fn must do no
// I/O. Transactions run one after the other.
func (db *DB) Update(d Durability, fn func(tx *Tx) error) error {
	db.writer.Lock()
	tx := &Tx{db: db, index: map[[2]string]int{}}
	if err := fn(tx); err != nil {
		db.writer.Unlock()
		return err
	}
	if len(tx.changes) == 0 {
		db.writer.Unlock()
		return nil
	}
	n, err := db.commit(tx.changes)
	db.writer.Unlock()
	if err != nil || d == Async {
		return err
	}
	if d == Soon {
		select {
		case db.soon <- struct{}{}:
		default: // asked for already
		}
		return nil
	}
	return db.waitSynced(n)
}

// commit writes one record and then swaps the memory. The writer lock is held.
func (db *DB) commit(changes []change) (int64, error) {
	if db.failed != nil {
		return 0, fmt.Errorf("the database takes no more changes: %w", db.failed)
	}
	rec, err := encode(changes)
	if err != nil {
		return 0, err
	}
	if _, err := db.file.WriteAt(rec, db.size); err != nil {
		// A partial record is cut off, so that the next one starts clean.
		if terr := db.file.Truncate(db.size); terr != nil {
			db.failed = terr
		}
		return 0, fmt.Errorf("cannot write the database: %w", err)
	}
	db.size += int64(len(rec))
	db.mu.Lock()
	db.apply(changes)
	db.mu.Unlock()
	db.syncing.mu.Lock()
	db.syncing.written++
	n := db.syncing.written
	db.syncing.mu.Unlock()
	return n, nil
}

func (db *DB) apply(changes []change) {
	for _, c := range changes {
		b := db.buckets[c.B]
		old, had := b[c.K]
		if had {
			db.live -= int64(len(old) + len(c.K) + len(c.B) + 24)
		}
		if c.V == nil {
			delete(b, c.K)
			continue
		}
		if b == nil {
			b = map[string][]byte{}
			db.buckets[c.B] = b
		}
		b[c.K] = c.V
		db.live += int64(len(c.V) + len(c.K) + len(c.B) + 24)
	}
}

// waitSynced returns once transaction n is on disk. The first to arrive
// syncs for all that wait.
func (db *DB) waitSynced(n int64) error {
	s := &db.syncing
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.synced < n {
		if s.running {
			s.cond.Wait()
			continue
		}
		s.running = true
		upTo := s.written
		s.mu.Unlock()
		err := unix.Fdatasync(int(db.file.Fd()))
		s.mu.Lock()
		s.running = false
		s.cond.Broadcast()
		if err != nil {
			return fmt.Errorf("cannot sync the database: %w", err)
		}
		s.synced = max(s.synced, upTo)
	}
	return nil
}

// background syncs what Async transactions left, once a second, and rewrites a
// journal that is mostly history.
func (db *DB) background() {
	defer close(db.done)
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-db.stop:
			return
		case <-db.soon:
			// What comes meanwhile shares the sync.
			select {
			case <-db.stop:
				return
			case <-time.After(soonDelay):
			}
		case <-t.C:
		}
		db.syncing.mu.Lock()
		n, dirty := db.syncing.written, db.syncing.written > db.syncing.synced
		db.syncing.mu.Unlock()
		if dirty {
			_ = db.waitSynced(n) // an error shows again at the next Sync transaction
		}
		_ = db.compact(false) // the old journal stays whole and in use on failure
	}
}

// compact rewrites the journal as one snapshot when that saves enough.
func (db *DB) compact(force bool) error {
	db.writer.Lock()
	defer db.writer.Unlock()
	if db.failed != nil || !force && (db.size < compactFrom || db.size < 4*db.live) {
		return nil
	}
	var all []change
	db.mu.RLock()
	for b, kv := range db.buckets {
		for k, v := range kv {
			all = append(all, change{B: b, K: k, V: v})
		}
	}
	db.mu.RUnlock()
	rec, err := encode(all)
	if err != nil {
		return err
	}
	path := filepath.Join(db.dir, "journal")
	if err := atomicfile.Write(path, append([]byte(magic), rec...), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		db.failed = err // the new file is in place, and cannot be written
		return err
	}
	// Wait out a sync of the old file, then swap: all of it is durable now.
	s := &db.syncing
	s.mu.Lock()
	for s.running {
		s.cond.Wait()
	}
	old := db.file
	db.file, db.size = f, int64(len(magic)+len(rec))
	s.synced = s.written
	s.cond.Broadcast()
	s.mu.Unlock()
	return old.Close()
}

func encode(changes []change) ([]byte, error) {
	body, err := json.Marshal(changes)
	if err != nil {
		return nil, err
	}
	if len(body) > maxRecord {
		return nil, fmt.Errorf("a transaction of %d bytes is too large", len(body))
	}
	rec := make([]byte, 8, 8+len(body))
	binary.LittleEndian.PutUint32(rec, uint32(len(body)))
	binary.LittleEndian.PutUint32(rec[4:], crc32.Checksum(body, castagnoli))
	return append(rec, body...), nil
}

// load reads the journal and cuts off a torn end.
func (db *DB) load() error {
	path := filepath.Join(db.dir, "journal")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(f)
	if err == nil && len(data) < len(magic) && strings.HasPrefix(magic, string(data)) {
		data = []byte(magic)
		_, err = f.WriteAt(data, 0)
	}
	if err == nil && !strings.HasPrefix(string(data), magic) {
		err = fmt.Errorf("%s is no journal of this engine", path)
	}
	if err != nil {
		_ = f.Close()
		return err
	}
	at := len(magic)
	for at+8 <= len(data) {
		n := int(binary.LittleEndian.Uint32(data[at:]))
		if n > maxRecord || at+8+n > len(data) {
			break
		}
		body := data[at+8 : at+8+n]
		if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(data[at+4:]) {
			break
		}
		var changes []change
		if err := json.Unmarshal(body, &changes); err != nil {
			_ = f.Close()
			return fmt.Errorf("%s is damaged at byte %d: %w", path, at, err)
		}
		db.apply(changes)
		at += 8 + n
	}
	if at < len(data) {
		// What follows the cut is kept aside when it is more than one torn record could be.
		if err := f.Truncate(int64(at)); err != nil {
			_ = f.Close()
			return err
		}
	}
	db.file, db.size = f, int64(at)
	return nil
}

// migrate brings an older schema to Version, one step at a time.
func (db *DB) migrate() error {
	var v int
	ok, err := db.Get("meta", "version", &v)
	if err != nil {
		return err
	}
	if ok && v > Version {
		return fmt.Errorf("the data root was written by a newer engine (schema %d, this one knows %d)", v, Version)
	}
	if ok && v == Version {
		return nil
	}
	return db.Update(Sync, func(tx *Tx) error { return tx.Put("meta", "version", Version) })
}
