package container

// The service's abilities, apart from the life cycle itself, which is on
// Service: each is a view of the same service.
type (
	// Files reads and changes what is in containers: cp, diff, export, commit.
	Files struct{ *Service }
	// Execs runs more processes in containers.
	Execs struct{ *Service }
	// Streams connects clients with a container's stdio and log.
	Streams struct{ *Service }
	// Views tells about containers: ps, inspect, top, stats.
	Views struct{ *Service }
	// creator checks and resolves what a create asks for.
	creator struct{ *Service }
	// launcher holds the steps of a start.
	launcher struct{ *Service }
	// volumes are what containers have of the volume service.
	volumes struct{ *Service }
	// roots makes the root filesystems of containers.
	roots struct{ *Service }
	// recovery brings records, keeper and disk to agreement.
	recovery struct{ *Service }
	// Nets puts containers on networks.
	Nets struct{ *Service }
	// Edits changes what a container is: rename, update, and prune.
	Edits struct{ *Service }
)
