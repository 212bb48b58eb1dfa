// Package registryd is a registry of images: the OCI distribution specification 1.1
// over a directory of files, as a program that needs nothing else.
//
// Words. A blob is content, named by its digest, of which the store holds one copy.
// A repository is a name with links: to blobs that were uploaded or mounted to it, to
// revisions (manifests by digest), and from tags to revisions. What has no link in a
// repository is not served from it. An upload is a session that appends to a file until
// the client names the digest.
//
// Files. The layout is the one that registries on a file system have had since the
// beginning, so a directory can be handed over in both directions:
//
//	ROOT/docker/registry/v2/
//	  blobs/sha256/ab/abcd…/data                      content
//	  repositories/NAME/_layers/sha256/HEX/link       a blob of this repository
//	  repositories/NAME/_manifests/revisions/sha256/HEX/link
//	  repositories/NAME/_manifests/tags/TAG/current/link
//	  repositories/NAME/_uploads/UUID/{data,startedat}
//	  repositories/NAME/_referrers/sha256/HEX/sha256/HEX/link   subject, referrer (ours)
//	  .lock                                           see below (ours)
//
// A file gets its final name when it is whole and synced: a blob is renamed before its
// link is written, a manifest's blob comes before its revision, the revision before its
// tag. A crash leaves an upload to resume, or content that nobody links.
//
// Locks. Whoever makes a link holds .lock shared and sets the blob's time of change to
// now; the collector deletes one blob at a time while it holds .lock alone, and only when
// that time is before its start and before the grace period. The lock is the kernel's, so
// a collector in another process is as safe as the one inside the server. An upload's data
// file is locked by whoever appends to it.
//
// A server:
//
//	c, err := ReadConfig("config.yml", os.Environ())
//	s, err := New(c, log)
//	err = s.Serve(ctx)
package registryd
