package container

import (
	"fmt"
	"math/rand/v2"
)

// A generated name is a manner and a person who worked on ships, harbours, the
// sea or computing.
var manners = []string{
	"able", "adept", "agile", "airy", "alert", "amber", "ample", "bold", "brave", "breezy", "bright", "brisk", "calm", "candid",
	"cheery", "civil", "clear", "clever", "cosy", "crisp", "curious", "daring", "deft", "eager", "early", "easy", "exact", "fair",
	"fleet", "fond", "frank", "fresh", "gentle", "glad", "golden", "grand", "handy", "happy", "hardy", "hearty", "honest", "jolly",
	"keen", "kind", "lively", "loyal", "lucid", "lucky", "mellow", "merry", "mighty", "modest", "neat", "nimble", "noble", "patient",
	"plucky", "polite", "proud", "quick", "quiet", "ready", "robust", "serene", "sharp", "silver", "smooth", "snug", "sober",
	"solid", "spry", "steady", "stoic", "sunny", "swift", "tidy", "trusty", "vivid", "warm", "wise", "witty", "worthy", "zesty",
}

var people = []string{
	"amundsen", "baret", "beaufort", "bering", "bligh", "bowditch", "brunel", "cabot", "carteret", "columbus", "cook", "cousteau",
	"darwin", "davis", "dijkstra", "drake", "earle", "elcano", "engelbart", "fitzroy", "franklin", "froude", "gama", "graham",
	"grace", "halley", "hamilton", "harrison", "heyerdahl", "hokule", "hopper", "hudson", "humboldt", "ibn_battuta", "ibn_majid", "kernighan",
	"knuth", "lamport", "liskov", "lovelace", "magellan", "maury", "mercator", "nansen", "napier", "pepys", "perlman", "piccard",
	"plimsoll", "polo", "pytheas", "ritchie", "ross", "scoresby", "shackleton", "shannon", "slocum", "stevenson", "tasman", "tharp",
	"thompson", "torres", "turing", "vancouver", "wallace", "wilkes", "worsley", "zheng_he",
}

func randomName(try int) string {
	name := manners[rand.IntN(len(manners))] + "_" + people[rand.IntN(len(people))]
	if try > 2 {
		name += fmt.Sprint(rand.IntN(10 * try))
	}
	return name
}
