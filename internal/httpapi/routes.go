package httpapi

// routes is the whole API. Rows whose backend is nil are left out, so an
// unknown path and an ability that this engine has not got look the same.
func routes(b Backends, o Options) []route {
	var t []route
	add := func(present bool, rows ...route) {
		if present {
			t = append(t, rows...)
		}
	}
	sys := systemAPI{b.System, o}
	add(true,
		route{method: "GET", pattern: "/_ping", access: Open, handle: sys.ping},
		route{method: "HEAD", pattern: "/_ping", access: Open, handle: sys.ping},
	)
	add(b.System != nil,
		route{method: "GET", pattern: "/info", access: Read, handle: sys.info},
		route{method: "GET", pattern: "/version", access: Read, handle: sys.engineVersion},
		route{method: "GET", pattern: "/system/df", min: 25, access: Read, handle: sys.diskUsage},
	)
	add(b.Events != nil,
		route{method: "GET", pattern: "/events", access: Read, handle: eventsAPI{b.Events}.stream},
	)

	lc := lifecycleAPI{b.Lifecycle, o}
	add(b.Lifecycle != nil,
		route{method: "POST", pattern: "/containers/create", access: Write, handle: lc.create},
		route{method: "POST", pattern: "/containers/{name}/start", access: Write, handle: lc.start},
		route{method: "POST", pattern: "/containers/{name}/stop", access: Write, handle: lc.stop},
		route{method: "POST", pattern: "/containers/{name}/restart", access: Write, handle: lc.restart},
		route{method: "POST", pattern: "/containers/{name}/kill", access: Write, handle: lc.kill},
		route{method: "DELETE", pattern: "/containers/{name}", access: Write, handle: lc.remove},
	)
	add(b.Wait != nil,
		route{method: "POST", pattern: "/containers/{name}/wait", access: Read, handle: waitAPI{b.Wait}.wait},
	)
	q := queryAPI{b.Query}
	add(b.Query != nil,
		route{method: "GET", pattern: "/containers/json", access: Read, handle: q.list},
		route{method: "GET", pattern: "/containers/{name}/json", access: Read, handle: q.inspect},
	)
	ctl := controlAPI{b.Control}
	add(b.Control != nil,
		route{method: "POST", pattern: "/containers/{name}/pause", access: Write, handle: ctl.pause},
		route{method: "POST", pattern: "/containers/{name}/unpause", access: Write, handle: ctl.unpause},
		route{method: "POST", pattern: "/containers/{name}/rename", access: Write, handle: ctl.rename},
		route{method: "POST", pattern: "/containers/{name}/resize", access: Write, handle: ctl.resize},
	)
	st := streamsAPI{b.Streams}
	add(b.Streams != nil,
		route{method: "POST", pattern: "/containers/{name}/attach", access: Write, handle: st.attach},
		route{method: "GET", pattern: "/containers/{name}/attach/ws", access: Write, handle: st.attachWebsocket},
		route{method: "GET", pattern: "/containers/{name}/logs", access: Read, handle: st.logs},
	)
	add(b.Update != nil, route{method: "POST", pattern: "/containers/{name}/update", access: Write, handle: updateAPI{b.Update}.update})
	if b.Prune != nil {
		add(true, route{method: "POST", pattern: "/containers/prune", min: 25, access: Write, handle: prune(b.Prune.Prune)})
	}
	add(b.Top != nil, route{method: "GET", pattern: "/containers/{name}/top", access: Read, handle: topAPI{b.Top}.top})
	add(b.Changes != nil, route{method: "GET", pattern: "/containers/{name}/changes", access: Read, handle: changesAPI{b.Changes}.changes})
	add(b.Stats != nil, route{method: "GET", pattern: "/containers/{name}/stats", access: Read, handle: statsAPI{b.Stats}.stats},
		// This engine's own: a client that shows a hundred containers asks once.
		route{method: "GET", pattern: "/berth/stats", access: Read, handle: statsAPI{b.Stats}.now})
	add(b.Export != nil, route{method: "GET", pattern: "/containers/{name}/export", access: Write, handle: exportAPI{b.Export}.export})
	add(b.Commit != nil, route{method: "POST", pattern: "/commit", access: Write, handle: commitAPI{b.Commit}.commit})
	ex := execAPI{b.Exec}
	add(b.Exec != nil,
		route{method: "POST", pattern: "/containers/{name}/exec", access: Write, handle: ex.create},
		route{method: "POST", pattern: "/exec/{id}/start", access: Write, handle: ex.start},
		route{method: "POST", pattern: "/exec/{id}/resize", access: Write, handle: ex.resize},
		route{method: "GET", pattern: "/exec/{id}/json", access: Read, handle: ex.inspect},
	)
	ar := archiveAPI{b.Archive}
	add(b.Archive != nil,
		route{method: "HEAD", pattern: "/containers/{name}/archive", access: Read, handle: ar.stat},
		route{method: "GET", pattern: "/containers/{name}/archive", access: Write, handle: ar.get},
		route{method: "PUT", pattern: "/containers/{name}/archive", access: Write, upload: true, handle: ar.put},
	)

	im := imagesAPI{b.Images}
	tr := transferAPI{b.Transfer, b.Puller}
	add(b.Transfer != nil,
		route{method: "GET", pattern: "/images/get", access: Write, handle: tr.saveSeveral},
		route{method: "GET", pattern: "/images/{name}/get", access: Write, handle: tr.save},
		route{method: "POST", pattern: "/images/load", access: Write, upload: true, handle: tr.load},
	)
	add(b.Transfer != nil || b.Puller != nil,
		route{method: "POST", pattern: "/images/create", access: Write, upload: true, handle: tr.create},
	)
	rg := registryAPI{b.Registry}
	add(b.Registry != nil,
		route{method: "POST", pattern: "/images/{name}/push", access: Write, handle: rg.push},
		route{method: "POST", pattern: "/auth", access: Write, handle: rg.login},
		route{method: "GET", pattern: "/images/search", access: Read, handle: rg.search},
		route{method: "GET", pattern: "/distribution/{name}/json", min: 30, access: Read, handle: rg.distribution},
	)
	add(b.Images != nil,
		route{method: "GET", pattern: "/images/json", access: Read, handle: im.list},
		route{method: "GET", pattern: "/images/{name}/json", access: Read, handle: im.inspect},
		route{method: "GET", pattern: "/images/{name}/history", access: Read, handle: im.history},
		route{method: "POST", pattern: "/images/{name}/tag", access: Write, handle: im.tag},
		route{method: "POST", pattern: "/images/prune", min: 25, access: Write, handle: im.prune},
		route{method: "DELETE", pattern: "/images/{name}", access: Write, handle: im.remove},
	)

	nw := networksAPI{b.Networks}
	add(b.Networks != nil,
		route{method: "GET", pattern: "/networks", access: Read, handle: nw.list},
		route{method: "GET", pattern: "/networks/{name}", access: Read, handle: nw.inspect},
		route{method: "DELETE", pattern: "/networks/{name}", access: Write, handle: nw.remove},
	)
	add(b.Networks != nil, route{method: "POST", pattern: "/networks/create", access: Write, handle: nw.create})
	co := connectAPI{b.Connector}
	add(b.Connector != nil,
		route{method: "POST", pattern: "/networks/{name}/connect", access: Write, handle: co.connect},
		route{method: "POST", pattern: "/networks/{name}/disconnect", access: Write, handle: co.disconnect},
	)
	if b.Networks != nil {
		add(true, route{method: "POST", pattern: "/networks/prune", min: 25, access: Write, handle: prune(b.Networks.Prune)})
	}
	vol := volumesAPI{b.Volumes}
	add(b.Volumes != nil,
		route{method: "GET", pattern: "/volumes", access: Read, handle: vol.list},
		route{method: "GET", pattern: "/volumes/{name}", access: Read, handle: vol.inspect},
		route{method: "DELETE", pattern: "/volumes/{name}", access: Write, handle: vol.remove},
		route{method: "POST", pattern: "/volumes/create", access: Write, handle: vol.create},
		route{method: "PUT", pattern: "/volumes/{name}", min: 42, access: Write, handle: vol.update},
		route{method: "POST", pattern: "/volumes/prune", min: 25, access: Write, handle: vol.prune},
	)
	add(true, route{method: "GET", pattern: "/plugins", min: 25, access: Read, handle: pluginList})
	if b.BuildCache != nil {
		add(true, route{method: "POST", pattern: "/build/prune", min: 31, access: Write, handle: prune(b.BuildCache.Prune)})
	}
	return t
}
