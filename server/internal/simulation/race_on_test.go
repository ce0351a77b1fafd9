//go:build race

package simulation

// raced: the race detector lets goroutines that are ready at one instant run in an order of its own choosing, so that two
// plays of one seed differ in it. What must hold is checked all the same.
const raced = true
