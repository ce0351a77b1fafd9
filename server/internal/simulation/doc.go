// Package simulation holds no code but tests: the whole of bmsota in one process and in virtual time, boards with their
// flash and their bootloader on one side, fleet, broker and web side of the server on the other, and between them a network
// that does what a seed says.
//
// Nothing in it is modelled but the wire, the supply and the operator: the boards are those of package device with the MQTT
// client that they always have, the broker and the handlers are the server's own. It lives below server because only there
// the parts of the server can be had without its ports; no other package looks at both halves from inside.
package simulation
