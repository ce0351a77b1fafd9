// Package e2e holds no code but tests: stories over the real binary, as the people who use it would live them.
//
// Each file in testdata/script is one story (testscript, txtar); its first comment says what it proves. The processes are
// real ones (server, boards, operator's commands, and Debian's Mosquitto, nginx, Apache, OpenSSH, git, curl and Python),
// on ports and in folders of their own, so that the stories run beside each other. What no decent program does (a server
// that lies about ranges, dies in the middle, answers with a login page) is done by the servers in hostile_test.go.
//
// Nothing waits for a fixed time: a story waits for a condition, with a deadline. A program that is missing fails the
// story and names the package; deps.sh installs them all.
//
// BMSOTA_E2E_RACE=1 builds the binary with the race detector; BMSOTA_E2E_BINARY=FILE runs the stories over that one.
package e2e
