package logs

// Buffered reports whether the next entry is there already, so that Next will
// not wait: a caller that gathers output writes it out when this is false.
func (r *Reader) Buffered() bool {
	return r.err == nil && indexNewline(r.buf[r.pos:r.end]) >= 0
}
