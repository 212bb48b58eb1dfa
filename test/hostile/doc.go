// Package hostile holds the tests of what has broken container engines: images
// and processes that mean harm. Each test fails without its guard. By class, with
// the published cases; what stands in another directory is named by it.
//
//	overwriting the runtime through /proc/self/exe (2019-5736)           TestProcSelfExe, TestProcSelfExeEverywhere; runtime TestInitIsSealed
//	leaked descriptors, WORKDIR /proc/self/fd/N (2024-21626)             TestDescriptors, TestDescriptorsEverywhere, TestWorkingDirectory; runtime TestStartLeaksNothing, TestWorkDirStaysInside
//	mount target swapped for a link (2021-30465, 2023-27561, 2024-45310) TestMountTargetRace (long under make stress); runtime TestMakeInRoot, TestMakeInRootRace
//	/proc, /sys, /dev as links or covered (2019-16884, 2019-19921)       TestLinkedMountTargets, TestCoveredProc, TestPreparedDevices
//	/dev/null, /dev/console, /dev/pts of the image (2025-31133, 52565)   TestPreparedDevices
//	writes to /proc redirected (2025-52881)                              TestCoveredProc; runtime TestSysctlNames, TestSysctlPath
//	inheritable capabilities, groups (2022-29162, 36109, 2023-25173)     TestCredentials
//	uid and gid parsing (2024-40635)                                     TestCredentials; container TestResolveUser, FuzzResolveUser
//	giant and odd /etc/passwd (2024-9676)                                TestUserDatabases, TestUserDatabaseChanged; container TestOddAccountFiles
//	cp races, helpers of the image (2018-15664, 2019-14271)              TestCopyLinks, TestCopyRace (long under make stress), TestCopyOddPaths, TestTrojanHelpers
//	layer and archive escapes (2021-41089)                               archive TestHostile, TestPrefixStaysInRoot, FuzzUnpack
//	bombs, malformed manifests, type confusion (2017-14992, 2021-41190)  TestEndlessInput; archive TestBounds, FuzzGunzip; image TestBadArchives, FuzzBundle, FuzzManifest
//	image metadata as control data (2022-23648)                          TestMetadataIsData
//	control characters for a terminal                                    TestTerminalEscapes
//	authorization sees another body than the handler (2024-41110)        test/client TestAuthorizationBody, TestAuthorizationPlugin, TestAuthorizationPluginGone
//	abstract sockets, modes (2020-15257, 2021-41091)                     TestModes, TestHostInformation
//	output and input exhausting memory (2022-31030, 2023-25153)          TestDeafClients, TestEndlessInput; keeper TestBackPressure, TestSlowReader, TestInputIsBounded; test/client TestHealthForms
//	host information through /proc, /sys and the environment             TestMasks, TestHostInformation, TestHostInformationMapped
//	reused process numbers                                               container TestOpenProcess; runtime TestKillSparesOthers; keeper TestStartTime
//	parsers                                                              FuzzCheck (bundle), FuzzBind, FuzzMount, FuzzOptions (container), FuzzBody, FuzzQuery (httpapi), FuzzSeccomp (runtime), FuzzValues (cli)
package hostile
