// Command bench measures Berth beside the engines that are installed on the
// machine, and beside a floor: a C program that does by bare system calls what
// a container needs, and nothing else.
//
//	go run ./test/bench                 # everything, some four minutes
//	go run ./test/bench -run 'cycle|cli' -n 20
//	go run ./test/bench -full -json     # 1,000 containers too; one JSON object
//
// The model. A subject is something that can be timed: the floor, berth,
// docker, podman, crun, runc. A measurement is a name and its subjects, and is
// taken in rounds: in each round every subject in turn does one burst of
// samples, with a pause before it so that what the one leaves behind does not
// burden the next. So a machine that gets slower for a while gets slower for
// all of them, and the ratios hold even while others compile on it. Absolute
// times from different runs should not be compared.
//
// Every engine is private to the run: own roots, own socket, own network and
// mount namespace, own cgroup parent. Programs are copied from -bin first, so a
// build meanwhile does no harm. A peer that is missing or does not work on the
// machine is named in the output, with its reason, and left out.
package main
