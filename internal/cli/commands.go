package cli

// groups is the table of management commands. An entry with a top name stands
// at the top level too.
func groups() []group {
	return []group{
		{"container", "Manage containers", []entry{
			{use: "attach [OPTIONS] CONTAINER", short: "Attach local standard input, output, and error streams to a running container", lo: 1, hi: 1, build: attachCmd, top: "attach"},
			{use: "commit [OPTIONS] CONTAINER [REPOSITORY[:TAG]]", short: "Create a new image from a container's changes", lo: 1, hi: 2, build: commitCmd, top: "commit"},
			{use: "cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n\t" + program + " cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH", short: "Copy files/folders between a container and the local filesystem", lo: 2, hi: 2, build: cpCmd, top: "cp"},
			{use: "create [OPTIONS] IMAGE [COMMAND] [ARG...]", short: "Create a new container", lo: 1, hi: -1, build: createCmd, top: "create"},
			{use: "diff CONTAINER", short: "Inspect changes to files or directories on a container's filesystem", lo: 1, hi: 1, build: diffCmd, top: "diff"},
			{use: "exec [OPTIONS] CONTAINER COMMAND [ARG...]", short: "Execute a command in a running container", lo: 2, hi: -1, build: execCmd, top: "exec", common: "02"},
			{use: "export [OPTIONS] CONTAINER", short: "Export a container's filesystem as a tar archive", lo: 1, hi: 1, build: exportCmd, top: "export"},
			{use: "inspect [OPTIONS] CONTAINER [CONTAINER...]", short: "Display detailed information on one or more containers", lo: 1, hi: -1, build: containerInspectCmd},
			{use: "kill [OPTIONS] CONTAINER [CONTAINER...]", short: "Kill one or more running containers", lo: 1, hi: -1, build: killCmd, top: "kill"},
			{use: "logs [OPTIONS] CONTAINER", short: "Fetch the logs of a container", lo: 1, hi: 1, build: logsCmd, top: "logs"},
			{use: "ls [OPTIONS]", short: "List containers", build: psCmd, alias: "list ps", top: "ps", common: "03"},
			{use: "pause CONTAINER [CONTAINER...]", short: "Pause all processes within one or more containers", lo: 1, hi: -1, build: pauseCmd, top: "pause"},
			{use: "port CONTAINER [PRIVATE_PORT[/PROTO]]", short: "List port mappings or a specific mapping for the container", lo: 1, hi: 2, build: portCmd, top: "port"},
			{use: "prune [OPTIONS]", short: "Remove all stopped containers", build: containerPruneCmd},
			{use: "rename CONTAINER NEW_NAME", short: "Rename a container", lo: 2, hi: 2, build: renameCmd, top: "rename"},
			{use: "restart [OPTIONS] CONTAINER [CONTAINER...]", short: "Restart one or more containers", lo: 1, hi: -1, build: restartCmd, top: "restart"},
			{use: "rm [OPTIONS] CONTAINER [CONTAINER...]", short: "Remove one or more containers", lo: 1, hi: -1, build: rmCmd, alias: "remove", top: "rm"},
			{use: "run [OPTIONS] IMAGE [COMMAND] [ARG...]", short: "Create and run a new container from an image", lo: 1, hi: -1, build: runCmd, top: "run", common: "01"},
			{use: "start [OPTIONS] CONTAINER [CONTAINER...]", short: "Start one or more stopped containers", lo: 1, hi: -1, build: startCmd, top: "start"},
			{use: "stats [OPTIONS] [CONTAINER...]", short: "Display a live stream of container(s) resource usage statistics", hi: -1, build: statsCmd, top: "stats"},
			{use: "stop [OPTIONS] CONTAINER [CONTAINER...]", short: "Stop one or more running containers", lo: 1, hi: -1, build: stopCmd, top: "stop"},
			{use: "top CONTAINER [ps OPTIONS]", short: "Display the running processes of a container", lo: 1, hi: -1, build: topCmd, top: "top"},
			{use: "unpause CONTAINER [CONTAINER...]", short: "Unpause all processes within one or more containers", lo: 1, hi: -1, build: unpauseCmd, top: "unpause"},
			{use: "update [OPTIONS] CONTAINER [CONTAINER...]", short: "Update configuration of one or more containers", lo: 1, hi: -1, build: updateCmd, top: "update"},
			{use: "wait CONTAINER [CONTAINER...]", short: "Block until one or more containers stop, then print their exit codes", lo: 1, hi: -1, build: waitCmd, top: "wait"},
		}},
		{"image", "Manage images", []entry{
			{use: "history [OPTIONS] IMAGE", short: "Show the history of an image", lo: 1, hi: 1, build: historyCmd, top: "history"},
			{use: "import [OPTIONS] file|URL|- [REPOSITORY[:TAG]]", short: "Import the contents from a tarball to create a filesystem image", lo: 1, hi: -1, build: importCmd, top: "import"},
			{use: "inspect [OPTIONS] IMAGE [IMAGE...]", short: "Display detailed information on one or more images", lo: 1, hi: -1, build: imageInspectCmd},
			{use: "load [OPTIONS]", short: "Load an image from a tar archive or STDIN", build: loadCmd, top: "load"},
			{use: "ls [OPTIONS] [REPOSITORY[:TAG]]", short: "List images", hi: 1, build: imagesCmd, alias: "list", top: "images", common: "07"},
			{use: "prune [OPTIONS]", short: "Remove unused images", build: imagePruneCmd},
			{use: "pull [OPTIONS] NAME[:TAG|@DIGEST]", short: "Download an image from a registry", lo: 1, hi: 1, build: pullCmd, top: "pull", common: "05"},
			{use: "push [OPTIONS] NAME[:TAG]", short: "Upload an image to a registry", lo: 1, hi: 1, build: pushCmd, top: "push", common: "06"},
			{use: "rm [OPTIONS] IMAGE [IMAGE...]", short: "Remove one or more images", lo: 1, hi: -1, build: rmiCmd, alias: "remove", top: "rmi"},
			{use: "save [OPTIONS] IMAGE [IMAGE...]", short: "Save one or more images to a tar archive (streamed to STDOUT by default)", lo: 1, hi: -1, build: saveCmd, top: "save"},
			{use: "tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", short: "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE", lo: 2, hi: 2, build: tagCmd, top: "tag"},
		}},
		{"network", "Manage networks", []entry{
			{use: "connect [OPTIONS] NETWORK CONTAINER", short: "Connect a container to a network", lo: 2, hi: 2, build: networkConnectCmd},
			{use: "create [OPTIONS] NETWORK", short: "Create a network", lo: 1, hi: 1, build: networkCreateCmd},
			{use: "disconnect [OPTIONS] NETWORK CONTAINER", short: "Disconnect a container from a network", lo: 2, hi: 2, build: networkDisconnectCmd},
			{use: "inspect [OPTIONS] NETWORK [NETWORK...]", short: "Display detailed information on one or more networks", lo: 1, hi: -1, build: networkInspectCmd},
			{use: "ls [OPTIONS]", short: "List networks", build: networkLsCmd, alias: "list"},
			{use: "prune [OPTIONS]", short: "Remove all unused networks", build: networkPruneCmd},
			{use: "rm NETWORK [NETWORK...]", short: "Remove one or more networks", lo: 1, hi: -1, build: networkRmCmd, alias: "remove"},
		}},
		{"volume", "Manage volumes", []entry{
			{use: "create [OPTIONS] [VOLUME]", short: "Create a volume", hi: 1, build: volumeCreateCmd},
			{use: "inspect [OPTIONS] VOLUME [VOLUME...]", short: "Display detailed information on one or more volumes", lo: 1, hi: -1, build: volumeInspectCmd},
			{use: "ls [OPTIONS]", short: "List volumes", build: volumeLsCmd, alias: "list"},
			{use: "prune [OPTIONS]", short: "Remove unused local volumes", build: volumePruneCmd},
			{use: "rm [OPTIONS] VOLUME [VOLUME...]", short: "Remove one or more volumes", lo: 1, hi: -1, build: volumeRmCmd, alias: "remove"},
			{use: "update [OPTIONS] [VOLUME]", short: "Update a volume (cluster volumes only)", lo: 1, hi: 1, build: volumeUpdateCmd},
		}},
		{"system", "Manage " + product, []entry{
			{use: "df [OPTIONS]", short: "Show " + program + " disk usage", build: dfCmd},
			{use: "events [OPTIONS]", short: "Get real time events from the server", build: eventsCmd, top: "events"},
			{use: "info [OPTIONS]", short: "Display system-wide information", build: infoCmd, top: "info", common: "12"},
			{use: "prune [OPTIONS]", short: "Remove unused data", build: systemPruneCmd},
			{use: "dial-stdio", short: "Proxy the stdio stream to the daemon connection. Should not be invoked manually.", build: dialStdioCmd, hidden: true},
		}},
		{"registry", "Run a private registry of images", []entry{
			{use: "gc [OPTIONS] [CONFIG]", short: "Remove blobs that no manifest names", hi: -1, build: registryCmd, alias: "garbage-collect"},
			{use: "serve [OPTIONS] [CONFIG]", short: "Serve a registry until interrupted", hi: -1, build: registryCmd},
		}},
		{"context", "Manage contexts", []entry{
			{use: "create [OPTIONS] CONTEXT", short: "Create a context", lo: 1, hi: 1, build: contextCreateCmd},
			{use: "export [OPTIONS] CONTEXT [FILE|-]", short: "Export a context to a tar archive FILE or a tar stream on STDOUT.", lo: 1, hi: 2, build: contextExportCmd},
			{use: "import CONTEXT FILE|-", short: "Import a context from a tar or zip file", lo: 2, hi: 2, build: contextImportCmd},
			{use: "inspect [OPTIONS] [CONTEXT] [CONTEXT...]", short: "Display detailed information on one or more contexts", hi: -1, build: contextInspectCmd},
			{use: "ls [OPTIONS]", short: "List contexts", build: contextLsCmd, alias: "list"},
			{use: "rm CONTEXT [CONTEXT...]", short: "Remove one or more contexts", lo: 1, hi: -1, build: contextRmCmd, alias: "remove"},
			{use: "show", short: "Print the name of the current context", build: contextShowCmd},
			{use: "update [OPTIONS] CONTEXT", short: "Update a context", lo: 1, hi: 1, build: contextUpdateCmd},
			{use: "use CONTEXT", short: "Set the current " + program + " context", lo: 1, hi: 1, build: contextUseCmd},
		}},
	}
}

// topOnly is the table of commands that stand in no group.
func topOnly() []entry {
	return []entry{
		{use: "inspect [OPTIONS] NAME|ID [NAME|ID...]", short: "Return low-level information on " + product + " objects", lo: 1, hi: -1, build: inspectCmd},
		{use: "login [OPTIONS] [SERVER]", short: "Authenticate to a registry", hi: 1, build: loginCmd, common: "08"},
		{use: "logout [SERVER]", short: "Log out from a registry", hi: 1, build: logoutCmd, common: "09"},
		{use: "search [OPTIONS] TERM", short: "Search Docker Hub for images", lo: 1, hi: 1, build: searchCmd, common: "10"},
		{use: "version [OPTIONS]", short: "Show the " + product + " version information", build: versionCmd, common: "11"},
	}
}
