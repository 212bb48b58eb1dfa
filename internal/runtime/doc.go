// Package runtime starts processes in containers: the first of a container,
// and more in one that runs.
//
// # Words
//
// A Launch is what is to be started: an OCI specification and the descriptors
// that it needs. A plan is the launch compiled into a table of system calls. A
// Runtime writes the table into a memory file, starts berth-init with it in new
// namespaces, and reads from a pipe whether the program was reached.
//
// # Steps of a start
//
// This is without a user namespace made ahead; for one with it see userns.go.
//
//	parent  look at mount points · compile · clone(namespaces, v2 cgroup)
//	child   join v1 cgroups · join namespaces · session · pivot_root ·
//	        mounts · masks · leave the old root · names, sysctls, limits ·
//	        working directory, seccomp, user, capabilities · execve
//
// What can be made before there is a child comes as a descriptor of a detached
// mount: the root file system, /dev (DevTree), bind sources, the cgroup view. The child
// only moves it into place, inside the container's root, where no path leads out.
//
// The order of the mounts keeps the container's images and volumes from
// redirecting the engine's own: see plan.mounts.
package runtime
