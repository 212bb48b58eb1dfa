package logs

// Buffered reports whether the next entry is there already, so that Next will
// not wait: a caller that gathers output writes it out when this is false.
func (r *Reader) Buffered() bool {
	if r.err != nil {
		return false
	}
	if r.local {
		_, n := frameAt(r.buf[r.pos:r.end])
		return n > 0
	}
	return indexNewline(r.buf[r.pos:r.end]) >= 0
}
